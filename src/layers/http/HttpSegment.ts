/** Handlers of the group `segment`: calls become interactions. */
import { HttpApiBuilder } from "@effect/platform"
import { Array as Arr, Effect, Either, Predicate } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { type SegmentReport, segmentBodyBytes } from "../../services/api/SegmentApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import { InteractionRecorder, type Submission } from "../../services/record/InteractionRecorder.ts"
import * as SegmentCalls from "../../services/record/SegmentCalls.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { onWebRequest, parseBody } from "./HttpBody.ts"
import { RecordingRoutes, tooMany, unavailable } from "./RecordingRoutes.ts"

/** Interactions of one append: a batch may hold more than may wait for a commit. */
const mostPerAppend = 1_000

/** The calls of a body. Those of a batch have their type with them. */
const callsOf = (name: string, body: unknown): Either.Either<ReadonlyArray<unknown>, Problem> => {
  if (!Predicate.isRecord(body))
    return Either.left(unprocessable([{ field: "", detail: "must be a JSON object" }]))
  if (name !== "batch") return Either.right([{ ...body, type: name }])
  return Array.isArray(body.batch)
    ? Either.right(body.batch)
    : Either.left(unprocessable([{ field: "batch", detail: "must be an array of calls" }]))
}

class Counts {
  recorded = 0
  duplicates = 0
  readonly ignored: Record<string, number> = {}

  count(outcome: "recorded" | "duplicates" | SegmentCalls.Ignored): void {
    Telemetry.count(Telemetry.segmentCalls(outcome))
    if (outcome === "recorded" || outcome === "duplicates") this[outcome]++
    else this.ignored[outcome] = (this.ignored[outcome] ?? 0) + 1
  }
}

export const segment = HttpApiBuilder.group(api, "segment", (handlers) =>
  Effect.gen(function* () {
    const { eventTypes } = yield* EmbeddingConfig
    const { takeToken } = yield* RecordingRoutes
    const recorder = yield* InteractionRecorder
    const clock = yield* Effect.clock

    const record = (submissions: ReadonlyArray<Submission>, counts: Counts) =>
      Effect.forEach(
        Arr.chunksOf(submissions, mostPerAppend),
        (chunk) =>
          Effect.map(Effect.mapError(recorder.record(chunk), unavailable), (answers) => {
            for (const { _tag } of answers)
              counts.count(
                ({ Recorded: "recorded", Duplicate: "duplicates", KeyReused: "key_reused" } as const)[_tag],
              )
          }),
        { discard: true },
      )

    const take = Effect.fnUntraced(function* (calls: ReadonlyArray<unknown>) {
      const now = clock.unsafeCurrentTimeMillis()
      const counts = new Counts()
      const submissions: Array<Submission> = []
      yield* Effect.forEach(
        calls,
        (call) =>
          Effect.sync(() => {
            for (const meant of SegmentCalls.meaningOf(call, now, eventTypes))
              if (typeof meant === "string") counts.count(meant)
              else submissions.push(meant)
          }),
        { discard: true },
      )
      // A library sends a refused batch again as it is. If each event counted, a large batch would never pass.
      const users = new Set(submissions.map(({ interaction }) => interaction.user_id))
      if (![...users].every(takeToken))
        return yield* new Problem({ status: 429, detail: tooMany, headers: { "retry-after": "1" } })
      yield* record(submissions, counts)
      const { duplicates, ignored, recorded } = counts
      return { success: true, recorded, duplicates, ignored } satisfies typeof SegmentReport.Type
    })

    // Raw: see decodeBody.
    return handlers.handleRaw("segment", ({ path, request }) =>
      onWebRequest(request, (web) => parseBody(web, segmentBodyBytes)).pipe(
        Effect.flatMap((body) => callsOf(path.call, body)),
        Effect.flatMap(take),
      ),
    )
  }),
)
