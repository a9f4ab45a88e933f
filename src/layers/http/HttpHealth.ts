/** Handlers of the group `health`. */
import { HttpApiBuilder, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect, Either } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import * as Health from "../../services/operate/Health.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { authorisation } from "./HttpAuthorisation.ts"

/** Raw handlers return the responses that WorkerHealth.ts also serves. */
export const health = HttpApiBuilder.group(api, "health", (handlers) =>
  Effect.map(readiness("api"), (ready) =>
    handlers
      .handle("livez", () => Effect.succeed({ status: "ok" } as const))
      // The only failure is a body that cannot be JSON, which this one always can.
      .handleRaw("readyz", () => Effect.orDie(ready))
      .handleRaw("metrics", () => metrics),
  ),
)

/** All metrics of this process, for Prometheus. */
export const metrics = Effect.map(Telemetry.prometheus, (text) =>
  HttpServerResponse.text(text, { contentType: "text/plain; version=0.0.4" }),
)

export const isVerbose = (url: string): boolean => {
  const value = new URLSearchParams(url.split("?", 2)[1]).get("verbose")
  return value !== null && value !== "false"
}

/**
 * 200, or 503 when the part cannot do its job; with `?verbose` also versions and latencies. Without a token that has the scope `operate` a
 * client learns no more than each state, because the text of a failure may name hosts and users.
 */
export const readiness = (...of: Parameters<typeof Health.make>) =>
  Effect.zipWith(authorisation, Health.make(...of), (accessOf, check) =>
    Effect.gen(function* () {
      const { headers, method, url } = yield* HttpServerRequest.HttpServerRequest
      const health = yield* check
      const access = accessOf({ method, url, header: (name) => headers[name] })
      const isOpen = Either.isRight(access) && access.right.scopes.includes("operate")
      const shown = isOpen && isVerbose(url) ? health : Health.brief(health, isOpen)
      return yield* HttpServerResponse.json(shown, { status: health.status === "unavailable" ? 503 : 200 })
    }),
  )
