/** Handlers of the group `interactions`. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { CurrentCaller } from "./HttpAuthorisation.ts"
import { onWebRequest } from "./HttpBody.ts"
import { RecordingRoutes } from "./RecordingRoutes.ts"

interface ProductRequest {
  readonly path: { readonly userId: string; readonly productId: string }
  readonly request: HttpServerRequest.HttpServerRequest
}

const responseOf = (
  request: HttpServerRequest.HttpServerRequest,
  respond: (request: Request, trace: Telemetry.TraceContext | null) => Promise<Response>,
) =>
  Effect.flatMap(Telemetry.currentTrace, (trace) =>
    Effect.map(
      onWebRequest(request, (web) => respond(web, trace)),
      HttpServerResponse.fromWeb,
    ),
  )

/** All handlers are raw: RecordingRoutes.ts reads the body and writes the response, on both paths. */
export const interactions = HttpApiBuilder.group(api, "interactions", (handlers) =>
  Effect.map(RecordingRoutes, (routes) => {
    const product =
      (route: string) =>
      ({ path, request }: ProductRequest) =>
        responseOf(request, (web, trace) => routes.product(web, trace, path.userId, path.productId, route))
    return handlers
      .handleRaw("search", ({ path, request }) =>
        responseOf(request, (web, trace) => routes.search(web, trace, path.userId)),
      )
      .handleRaw("view", product("view"))
      .handleRaw("click", product("click"))
      .handleRaw("purchase", product("purchase"))
      .handleRaw("product", ({ path, request }) => product(path.type)({ path, request }))
      .handleRaw("retract", ({ path, request }) =>
        responseOf(request, (web, trace) => routes.retract(web, trace, path.userId)),
      )
      .handleRaw("merge", ({ path, request }) =>
        responseOf(request, (web, trace) => routes.merge(web, trace, path.userId)),
      )
      .handleRaw("bulk", ({ request }) =>
        Effect.flatMap(CurrentCaller, (caller) =>
          responseOf(request, (web, trace) => routes.bulk(web, trace, caller)),
        ),
      )
  }),
)
