/** The differences between RabbitMQ, MySQL, MongoDB, PostgreSQL and Jaeger. */

export const serviceNames = ["rabbitmq", "mysql", "mongodb", "postgres", "jaeger"] as const
export type ServiceName = (typeof serviceNames)[number]
export const defaultServices: readonly ServiceName[] = ["rabbitmq", "mysql", "mongodb"]

/** Host ports by purpose ("amqp", "management" …). An instance keeps its ports. */
export type Ports = Readonly<Record<string, number>>

/** Environment variables with the URLs of the service. */
export type ServiceEnv = Readonly<Record<string, string>>

/** One node of a service. A single server is a cluster of one. */
export interface Node {
  /** The name of the service, with a number in a cluster: `rabbitmq2`. */
  readonly name: string
  readonly service: ServiceName
  readonly index: number
  /** The ports of all nodes. */
  readonly cluster: readonly Ports[]
}

/** The nodes of a cluster with these ports. */
export const nodesOf = (service: ServiceName, cluster: readonly Ports[]): readonly Node[] =>
  cluster.map((_, index) => ({
    name: cluster.length === 1 ? service : `${service}${index + 1}`,
    service,
    index,
    cluster,
  }))

export const portsOf = ({ cluster, index }: Node): Ports => cluster[index] ?? {}
export const isClustered = ({ cluster }: Node): boolean => cluster.length > 1

export interface Service {
  readonly name: ServiceName
  /** The variable that names an existing server. */
  readonly urlVariable: string
  /** Purpose → the port inside the container. */
  readonly ports: Ports
  readonly env: (cluster: readonly Ports[]) => ServiceEnv
  /** Asks the service for its product and version, by its own protocol. Rejects when the service is not ready. */
  readonly probe: (env: ServiceEnv) => Promise<string>
  /** Joins the nodes of a cluster when all answer, and waits until the cluster is ready. Services without it have single servers only. */
  readonly join?: (cluster: readonly Ports[]) => Promise<void>
  readonly docker: {
    /** The name of the service in docker-compose.yml, which names the image. */
    readonly compose: string
    readonly env?: Readonly<Record<string, string>>
    /** Files that the container starts with. The entry point of the image sets their owner. */
    readonly files?: (
      node: Node,
    ) => ReadonlyArray<{ readonly target: string; readonly content: string; readonly mode: number }>
    /** Arguments in place of the image's own, for a node on the network of this machine instead of one of its own. */
    readonly onHost?: (node: Node) => readonly string[] | undefined
    /** Runs once, after a new container has become ready. */
    readonly prepare?: (ports: Ports) => Promise<void>
  }
  readonly native: {
    /** Installs the programs, or rejects with the name of the missing package. */
    readonly install: (signal: AbortSignal) => Promise<void>
    /** Writes the first files of a new data folder. */
    readonly prepare: (folder: string, ports: Ports) => Promise<void>
    readonly command: (folder: string, node: Node) => readonly string[]
    readonly env?: (folder: string, ports: Ports) => Readonly<Record<string, string>>
    /** The folder of its client programs, if it need not be on the PATH. */
    readonly programs?: string
    /** False for a service that has native single servers only. */
    readonly clusters?: boolean
  }
}

/** A node that `up` started. `handle` is the id of the container, or the pid and start time of the process. */
export interface Instance extends Node {
  readonly backend: "docker" | "native"
  readonly handle: string
  /** The URLs of this node alone. */
  readonly env: ServiceEnv
}

/** Runs servers. Failure tests use `stop`, `kill`, `pause` and `resume`. */
export interface Backend {
  /** The reason why this machine cannot run the nodes of the service, or undefined. */
  readonly obstacle: (service: Service, clustered: boolean) => Promise<string | undefined>
  /** Starts a new node. It calls `started` as soon as there is something to clean up, and ends after `ready`. */
  readonly create: (
    service: Service,
    node: Node,
    started: (handle: string) => void,
    ready: () => Promise<void>,
    signal: AbortSignal,
  ) => Promise<void>
  /** Starts a stopped or killed node with its old ports and data. Answers the new handle. */
  readonly start: (service: Service, instance: Instance) => Promise<string>
  readonly stop: (instance: Instance) => Promise<void>
  readonly kill: (instance: Instance) => Promise<void>
  readonly pause: (instance: Instance) => Promise<void>
  readonly resume: (instance: Instance) => Promise<void>
  /** Runs a program of the server and answers its standard output. */
  readonly exec: (service: Service, instance: Instance, command: readonly string[]) => Promise<string>
  readonly remove: (instance: Instance) => Promise<void>
  readonly running: (instance: Instance) => Promise<boolean>
  readonly log: (instance: Instance) => Promise<string>
}
