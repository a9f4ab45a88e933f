/** `prune`: deletes old rows of the log. */
import { Effect, Layer, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Pruner from "../../services/operate/Pruner.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { json, print } from "./support/Output.ts"
import { figure, measured } from "./support/Progress.ts"
import { BadUsage, command, confirm, flag, instant, yes } from "./support/Usage.ts"

const reasons: Readonly<Record<string, string>> = {
  unpublished: "wait in the outbox",
  not_applied: "are not applied, or are taken back by a retraction that is not (see audit)",
  not_counted: "are not in the pairs of products yet (the next prune takes them)",
  recency_history: "belong to users with recency history (run rebuild --all)",
  unknown_event_type: "have a type that EVENT_WEIGHTS no longer has",
  without_vector: "have no vector any more (import the product)",
}

export const prune = command(
  "prune",
  "Deletes old events from the log and keeps their sums, so that embeddings, audit and rebuild stay right; asks before unless --yes",
  {
    before: instant("before", "Delete events that occurred before this time"),
    dryRun: flag("dry-run", "Only count them; delete nothing"),
    yes,
    json,
  },
  ({ before, dryRun, json, yes }) =>
    Effect.gen(function* () {
      if (Option.isNone(before))
        return yield* new BadUsage({ message: "give --before, as in prune --before 2025-11-01" })
      if (!dryRun) yield* confirm(`Delete the events before ${before.value} from the log?`, yes)
      const pruner = yield* Pruner.Pruner
      const report = yield* measured(
        "events",
        (progress) => pruner.prune({ before: before.value, dryRun, progress }),
        ({ count, done = 0 }) =>
          `stopped at row ${done} of the log, after ${figure(count)} events; run it again to go on`,
      )
      yield* print(json, report, ({ events, kept, retractions }) =>
        [
          `${figure(events)} events before ${before.value} ${dryRun ? "would be" : "are"} pruned, with ${figure(retractions)} retractions`,
          ...Object.entries(kept).map(([reason, count]) => `${figure(count)} stay: they ${reasons[reason]}`),
        ].join("\n"),
      )
    }).pipe(
      Effect.provide(Pruner.layer.pipe(Layer.provide(EventVectors.layer), Layer.provideMerge(Stack.layer))),
    ),
)
