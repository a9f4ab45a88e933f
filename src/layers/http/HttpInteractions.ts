/** Handlers of the group `interactions`. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { RecordingRoutes } from "./RecordingRoutes.ts"

interface Asked {
  readonly path: { readonly userId: string; readonly productId: string }
  readonly request: HttpServerRequest.HttpServerRequest
}

const answer = (
  { source }: HttpServerRequest.HttpServerRequest,
  respond: (request: Request, trace: Telemetry.TraceContext | null) => Promise<Response>,
) =>
  Effect.flatMap(Telemetry.currentTrace, (trace) =>
    source instanceof Request
      ? Effect.map(
          Effect.promise(() => respond(source, trace)),
          HttpServerResponse.fromWeb,
        )
      : Effect.dieMessage("the server speaks web requests"),
  )

export const interactions = HttpApiBuilder.group(api, "interactions", (handlers) =>
  Effect.map(RecordingRoutes, (ingest) => {
    const product =
      (route: string) =>
      ({ path, request }: Asked) =>
        answer(request, (web, trace) => ingest.product(web, trace, path.userId, path.productId, route))
    return handlers
      .handleRaw("search", ({ path, request }) =>
        answer(request, (web, trace) => ingest.search(web, trace, path.userId)),
      )
      .handleRaw("view", product("view"))
      .handleRaw("click", product("click"))
      .handleRaw("purchase", product("purchase"))
      .handleRaw("product", ({ path, request }) => product(path.type)({ path, request }))
      .handleRaw("bulk", ({ request }) => answer(request, ingest.bulk))
  }),
)
