/** Handlers of the group `health`, and what `/readyz` answers in every part. */
import { HttpApiBuilder, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import * as Health from "../services/Health.ts"
import { api } from "../services/InteractionApi.ts"
import { answer } from "./HttpAnswer.ts"

export const health = HttpApiBuilder.group(api, "health", (handlers) =>
  Effect.gen(function* () {
    const check = yield* Health.make("api")
    return handlers
      .handleRaw("livez", () => answer(HttpServerResponse.json({ status: "ok" })))
      .handleRaw("readyz", () => answer(readiness(check)))
  }),
)

/** 200 with each dependency's state, or 503 when the part can't do its job. */
export const readiness = (check: Effect.Effect<Health.Health>) =>
  Effect.flatMap(check, (health) =>
    HttpServerResponse.json(health, { status: health.status === "unavailable" ? 503 : 200 }),
  )
