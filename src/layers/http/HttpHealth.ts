/** Handlers of the group `health`, and what `/readyz` answers in every part. */
import { HttpApiBuilder, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import * as Health from "../../services/operate/Health.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { answer } from "./HttpProblems.ts"

export const health = HttpApiBuilder.group(api, "health", (handlers) =>
  Effect.gen(function* () {
    const check = yield* Health.make("api")
    return handlers
      .handleRaw("livez", () => answer(HttpServerResponse.json({ status: "ok" })))
      .handleRaw("readyz", () => answer(readiness(check)))
      .handleRaw("metrics", () => metrics)
  }),
)

/** All metrics of this process, for Prometheus. */
export const metrics = Effect.map(Telemetry.prometheus, (text) =>
  HttpServerResponse.text(text, { contentType: "text/plain; version=0.0.4" }),
)

/** Whether `?verbose` stands in the URL. */
export const isVerbose = (url: string): boolean => {
  const value = new URLSearchParams(url.split("?", 2)[1]).get("verbose")
  return value !== null && value !== "false"
}

/**
 * 200 with each dependency's state, or 503 when the part can't do its job; versions and latencies with `?verbose`.
 */
export const readiness = (check: Effect.Effect<Health.Health>) =>
  Effect.gen(function* () {
    const { url } = yield* HttpServerRequest.HttpServerRequest
    const health = yield* check
    return yield* HttpServerResponse.json(isVerbose(url) ? health : Health.brief(health), {
      status: health.status === "unavailable" ? 503 : 200,
    })
  })
