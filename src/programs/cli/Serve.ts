/** `up`, `api`, `worker`, `relay`: programs that run until they are told to stop. */
import { Command } from "@effect/cli"
import type { BunContext } from "@effect/platform-bun"
import { Effect, Layer, Logger } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Logging from "../../layers/telemetry/Logging.ts"
import * as Gauges from "../../services/operate/Gauges.ts"
import * as Api from "../Api.ts"
import * as Relay from "../Relay.ts"
import * as Up from "../Up.ts"
import * as Worker from "../Worker.ts"
import * as WorkerHealth from "../WorkerHealth.ts"

/** Runs a program layer until it is told to stop. */
const serve = <A, E>(
  name: string,
  description: string,
  layer: Layer.Layer<A, E, Stack.Ports | BunContext.BunContext>,
) =>
  Command.make(name, {}, () =>
    Effect.flatMap(Logging.level("info"), (level) =>
      Logger.withMinimumLogLevel(Layer.launch(Layer.provide(layer, Stack.layer)), level),
    ),
  ).pipe(Command.withDescription(description))

export const up = serve(
  "up",
  "API, relay and worker in one process (embedded unless servers are configured)",
  Up.layer,
)
export const api = serve("api", "The HTTP API, which also publishes and sweeps the outbox", Api.layer)
export const worker = serve(
  "worker",
  "Folds interactions into embeddings; run as many as you like",
  WorkerHealth.layer.pipe(Layer.provideMerge(Worker.layer), Layer.provide(Worker.lowerPriority)),
)
export const relay = serve(
  "relay",
  "Publishes what is left in the outbox, for those who want it apart",
  Layer.mergeAll(Relay.layer, Gauges.outbox, Gauges.ownProcess),
)
