/** `replay`: publishes rows of the log again. */
import { Effect, Layer, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Replayer from "../../services/operate/Replayer.ts"
import { json, print } from "./support/Output.ts"
import { counting } from "./support/Progress.ts"
import { BadUsage, command, eventType, flag, given, instant, onlyUser } from "./support/Usage.ts"

export const replay = command(
  "replay",
  "Publishes recorded events to the workers again, to apply those that were lost or skipped; no event counts twice",
  {
    user: onlyUser("Only events of this user"),
    since: instant("since", "Only events that occurred at or after this time"),
    until: instant("until", "Only events that occurred before this time"),
    recordedSince: instant("recorded-since", "Only events that were recorded at or after this time"),
    type: eventType("type", "Only events of this type"),
    all: flag("all", "All recorded events"),
    dryRun: flag("dry-run", "Only count them; publish nothing"),
    json,
  },
  ({ all, dryRun, json, ...options }) =>
    Effect.gen(function* () {
      if (!all && Object.values(options).every(Option.isNone))
        return yield* new BadUsage({
          message: "give --user, --since, --until, --recorded-since or --type, or --all",
        })
      const replayer = yield* Replayer.Replayer
      const report = yield* counting(
        "messages",
        (progress) => replayer.replay(given(options), { dryRun, progress }),
        ({ count }) =>
          `stopped after ${count} messages; run it again from the beginning: no event counts twice`,
      )
      yield* print(json, report, ({ matched, published, unknown_event_types: unknown = {} }) => {
        const left = Object.entries(unknown).map(([type, count]) => `${count} ${type}`)
        const known = Object.values(unknown).reduce((rest, count) => rest - count, matched)
        return [
          dryRun
            ? `${known} interactions would be published again`
            : `${published} interactions published again`,
          ...(left.length > 0
            ? [`left out, because EVENT_WEIGHTS has not their type: ${left.join(", ")}`]
            : []),
        ].join("\n")
      })
    }).pipe(Effect.provide(Layer.provideMerge(Replayer.layer, Stack.layer))),
)
