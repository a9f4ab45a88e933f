/** `up`, `api`, `worker`, `relay`: programs that run until a signal stops them. */
import type { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Logger } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Logging from "../../layers/telemetry/Logging.ts"
import * as Gauges from "../../services/operate/Gauges.ts"
import { unknownVariables } from "../../services/UnknownVariables.ts"
import * as Relay from "../Relay.ts"
import * as Worker from "../Worker.ts"
import { command } from "./support/Usage.ts"

const namingUnknown = Effect.suspend(() => {
  const variables = unknownVariables(process.env)
  return variables.length === 0
    ? Effect.void
    : Effect.annotateLogs(Effect.logWarning("config.unknown"), { variables: variables.join(", ") })
})

const serve = <A, E>(
  name: string,
  description: string,
  layer: Layer.Layer<A, E, Stack.Ports | BunContext.BunContext>,
) =>
  command(name, description, {}, () =>
    Effect.flatMap(Logging.level("info"), (level) =>
      Effect.zipRight(namingUnknown, Layer.launch(Layer.provide(layer, Stack.layer))).pipe(
        Logger.withMinimumLogLevel(level),
      ),
    ),
  )

/** The server and its routes take a tenth of the time of a start, so only commands that serve them load them. */
const loaded = <A, E, R>(load: () => Promise<{ readonly layer: Layer.Layer<A, E, R> }>) =>
  Layer.unwrapEffect(Effect.map(Effect.promise(load), ({ layer }) => layer))

export const up = serve(
  "up",
  "Runs the whole system in one process: API, relay and worker; without servers it stores everything in SQLite",
  loaded(() => import("../Up.ts")),
)
export const api = serve(
  "api",
  "Runs the HTTP API, which records events and publishes them from the outbox",
  loaded(() => import("../Api.ts")),
)
export const worker = serve(
  "worker",
  "Runs a worker, which folds events into user embeddings; run several to handle more load",
  loaded(() => import("../WorkerHealth.ts")).pipe(
    Layer.provideMerge(Worker.layer),
    Layer.provide(Worker.lowerPriority),
  ),
)
export const relay = serve(
  "relay",
  "Runs a relay, which publishes events that the API has left in the outbox; needed only apart from the API",
  Layer.mergeAll(Relay.layer, Gauges.outbox, Gauges.ownProcess),
)
