/** The differences between RabbitMQ, MySQL, MongoDB and Jaeger. */

export const serviceNames = ["rabbitmq", "mysql", "mongodb", "jaeger"] as const
export type ServiceName = (typeof serviceNames)[number]
export const defaultServices: readonly ServiceName[] = ["rabbitmq", "mysql", "mongodb"]

/** Host ports by purpose ("amqp", "management" …). An instance keeps its ports. */
export type Ports = Readonly<Record<string, number>>

/** Environment variables with the URLs of the service. */
export type ServiceEnv = Readonly<Record<string, string>>

export interface Service {
  readonly name: ServiceName
  /** The variable that names an existing server. */
  readonly urlVariable: string
  /** Purpose → the port inside the container. */
  readonly ports: Ports
  readonly env: (ports: Ports) => ServiceEnv
  /** Calls the service by its own protocol. Rejects when the service is not ready. */
  readonly probe: (env: ServiceEnv) => Promise<void>
  readonly docker: {
    readonly image: string
    readonly env: Readonly<Record<string, string>>
    readonly args: readonly string[]
    /** Runs once, after a new container has become ready. */
    readonly prepare?: (ports: Ports) => Promise<void>
  }
  readonly native: {
    /** Installs the programs, or rejects with the name of the missing package. */
    readonly install: (signal: AbortSignal) => Promise<void>
    /** Writes the first files of a new data folder. */
    readonly prepare: (folder: string, ports: Ports) => Promise<void>
    readonly command: (folder: string, ports: Ports) => readonly string[]
    readonly env?: (folder: string, ports: Ports) => Readonly<Record<string, string>>
  }
}

/** A server that `up` started. `handle` is the id of the container, or the pid and start time of the process. */
export interface Instance {
  readonly service: ServiceName
  readonly backend: "docker" | "native"
  readonly handle: string
  readonly ports: Ports
  readonly env: ServiceEnv
}

/** Runs servers. Failure tests use `stop`, `kill`, `pause` and `resume`. */
export interface Backend {
  /** The reason why this machine cannot run the service, or undefined. */
  readonly obstacle: (service: Service) => Promise<string | undefined>
  /** Starts a new server. It calls `started` as soon as there is something to clean up. */
  readonly create: (
    service: Service,
    ports: Ports,
    started: (handle: string) => void,
    signal: AbortSignal,
  ) => Promise<void>
  /** Runs once when the new server answers. */
  readonly prepare: (service: Service, ports: Ports) => Promise<void>
  /** Starts a stopped or killed server with its old ports and data. Answers the new handle. */
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
