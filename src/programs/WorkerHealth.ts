/** A worker's /livez, /readyz and /metrics on WORKER_PORT. If the port is in use, the worker runs without them. */
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { BunHttpServer } from "@effect/platform-bun"
import { Effect, Layer } from "effect"
import { metrics, readiness } from "../layers/http/HttpHealth.ts"
import * as Gauges from "../services/operate/Gauges.ts"
import * as Settings from "../services/Settings.ts"
import { EmbeddingWorker } from "../services/update/EmbeddingWorker.ts"

const routes = Effect.gen(function* () {
  const { outage } = yield* EmbeddingWorker
  const ready = yield* readiness("worker", outage)
  return HttpRouter.empty.pipe(
    HttpRouter.get("/livez", HttpServerResponse.json({ status: "ok" })),
    HttpRouter.get("/readyz", ready),
    HttpRouter.get("/metrics", metrics),
  )
})

const listening = Layer.unwrapScoped(Effect.map(routes, (router) => HttpServer.serve(router))).pipe(
  Layer.provide(
    Layer.unwrapEffect(
      Effect.map(Settings.WORKER_PORT, (port) => BunHttpServer.layerServer({ port, hostname: "0.0.0.0" })),
    ),
  ),
)

export const layer = Layer.catchAllCause(listening, (cause) =>
  Layer.effectDiscard(Effect.logWarning("worker.no_health_port", cause)),
).pipe(Layer.merge(Layer.merge(Gauges.queues, Gauges.ownProcess)))
