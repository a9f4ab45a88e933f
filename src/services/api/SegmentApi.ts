/** Segment's tracking API, as its libraries and RudderStack speak it. */
import { HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { RouteScopes } from "../AccessTokens.ts"
import { choice } from "./ApiParameters.ts"
import { bodyStatuses, problems, SegmentAuthorisation } from "./ApiProblems.ts"

/** The largest body in bytes: the limit of Segment itself for a batch. */
export const segmentBodyBytes = 500 * 1024

const call = HttpApiSchema.param(
  "call",
  choice("track", "page", "screen", "group", "identify", "alias", "batch"),
)

/** HttpSegment.ts decodes it: what has no meaning here is no mistake of the client. */
const Body = Schema.Record({ key: Schema.String, value: Schema.Unknown }).annotations({
  identifier: "SegmentBody",
  jsonSchema: {
    type: "object",
    description: 'A call as Segment documents it; for `batch`, {"batch": [calls with their "type"]}',
  },
})

/** What became of the calls: `waiting` counts refunds whose order is not recorded yet, `ignored` those that changed nothing, by the reason. */
export const SegmentReport = Schema.Struct({
  success: Schema.Literal(true),
  recorded: Schema.Number,
  duplicates: Schema.Number,
  waiting: Schema.Number,
  ignored: Schema.Record({ key: Schema.String, value: Schema.Number }),
}).annotations({ identifier: "SegmentReport" })

export const segment = HttpApiGroup.make("segment")
  .annotate(OpenApi.Description, "Segment's tracking API, which RudderStack speaks too.")
  .add(
    HttpApiEndpoint.post("segment")`/v1/${call}`
      .annotate(OpenApi.Summary, "Take calls of Segment's libraries")
      .setPayload(Body)
      .addSuccess(SegmentReport)
      .addError(problems(...bodyStatuses, 429, 503))
      .annotate(
        OpenApi.Description,
        "Takes calls as Segment's libraries send them. Calls without a meaning here are counted and answered 200.",
      ),
  )
  .middleware(SegmentAuthorisation)
  .annotate(RouteScopes, ["write"])
