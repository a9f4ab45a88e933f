/** What a service is: everything that differs between RabbitMQ, MySQL, MongoDB and Jaeger, and nothing else. */

export const serviceNames = ["rabbitmq", "mysql", "mongodb", "jaeger"] as const
export type ServiceName = (typeof serviceNames)[number]
export const defaultServices: readonly ServiceName[] = ["rabbitmq", "mysql", "mongodb"]

/** Host ports by purpose ("amqp", "management" …), the same for the whole life of an instance. */
export type Ports = Readonly<Record<string, number>>

/** Environment variables that tell programs and tests where the service is. */
export type ServiceEnv = Readonly<Record<string, string>>

export interface Service {
  readonly name: ServiceName
  /** The variable by which somebody brings a server of their own. */
  readonly urlVariable: string
  /** Purpose → the port inside the container. */
  readonly ports: Ports
  readonly env: (ports: Ports) => ServiceEnv
  /** Speaks the service's own protocol; resolves once it can do work, rejects when it cannot. */
  readonly probe: (env: ServiceEnv) => Promise<void>
  readonly docker: {
    readonly image: string
    readonly env: Readonly<Record<string, string>>
    readonly args: readonly string[]
    /** Runs once, when a new container is ready. */
    readonly prepare?: (ports: Ports) => Promise<void>
  }
  readonly native: {
    /** Makes sure the programs are there, or rejects saying what to install. */
    readonly install: (signal: AbortSignal) => Promise<void>
    /** Writes what a new, empty data folder needs. */
    readonly prepare: (folder: string, ports: Ports) => Promise<void>
    readonly command: (folder: string, ports: Ports) => readonly string[]
    readonly env?: (folder: string, ports: Ports) => Readonly<Record<string, string>>
  }
}

/** A server that `up` started. `handle` is the container's id, or pid and start time of the process. */
export interface Instance {
  readonly service: ServiceName
  readonly backend: "docker" | "native"
  readonly handle: string
  readonly ports: Ports
  readonly env: ServiceEnv
}

/** How servers are run. Failure tests use the verbs between `stop` and `resume`. */
export interface Backend {
  /** Why it cannot run this service on this machine; undefined when it can. */
  readonly obstacle: (service: Service) => Promise<string | undefined>
  /** Starts a new server; `started` is called as soon as there is something to clean up. */
  readonly create: (
    service: Service,
    ports: Ports,
    started: (handle: string) => void,
    signal: AbortSignal,
  ) => Promise<void>
  /** Runs once when the new server answers. */
  readonly prepare: (service: Service, ports: Ports) => Promise<void>
  /** Starts a stopped or killed server with its old ports and data; answers the new handle. */
  readonly start: (service: Service, instance: Instance) => Promise<string>
  readonly stop: (instance: Instance) => Promise<void>
  readonly kill: (instance: Instance) => Promise<void>
  readonly pause: (instance: Instance) => Promise<void>
  readonly resume: (instance: Instance) => Promise<void>
  /** Runs a program of the server beside it; answers its standard output. */
  readonly exec: (service: Service, instance: Instance, command: readonly string[]) => Promise<string>
  readonly remove: (instance: Instance) => Promise<void>
  readonly running: (instance: Instance) => Promise<boolean>
  readonly log: (instance: Instance) => Promise<string>
}
