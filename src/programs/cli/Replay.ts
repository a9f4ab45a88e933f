/** `replay`: publishes rows of the log again. */
import { Command, Options } from "@effect/cli"
import { Effect, Layer, Option, Schema } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { UserId } from "../../services/model/Interaction.ts"
import * as Replayer from "../../services/operate/Replayer.ts"
import { json, print } from "./support/Output.ts"
import { counting } from "./support/Progress.ts"
import { BadUsage, eventType, instant } from "./support/Usage.ts"

export const replay = Command.make(
  "replay",
  {
    user: Options.text("user").pipe(
      Options.withSchema(Schema.typeSchema(UserId)),
      Options.withDescription("Only events of this user"),
      Options.optional,
    ),
    since: instant("since", "Only events that occurred at or after this time"),
    until: instant("until", "Only events that occurred before this time"),
    type: eventType("type", "Only events of this type").pipe(Options.optional),
    all: Options.boolean("all").pipe(Options.withDescription("All recorded events")),
    dryRun: Options.boolean("dry-run").pipe(Options.withDescription("Only count them; publish nothing")),
    json,
  },
  ({ all, dryRun, json, since, type, until, user }) =>
    Effect.gen(function* () {
      if (!all && [since, type, until, user].every(Option.isNone))
        return yield* new BadUsage({ message: "give --user, --since, --until or --type, or --all" })
      const filter = {
        ...(Option.isSome(user) ? { user: user.value } : {}),
        ...(Option.isSome(type) ? { type: type.value } : {}),
        ...(Option.isSome(since) ? { since: since.value } : {}),
        ...(Option.isSome(until) ? { until: until.value } : {}),
      }
      const replayer = yield* Replayer.Replayer
      const report = yield* counting("messages", (progress) => replayer.replay(filter, { dryRun, progress }))
      yield* print(json, report, ({ matched, published }) =>
        dryRun
          ? `${matched} interactions would be published again`
          : `${published} interactions published again`,
      )
    }).pipe(Effect.provide(Layer.provideMerge(Replayer.layer, Stack.layer))),
).pipe(
  Command.withDescription(
    "Publishes recorded events to the workers again, to apply those that were lost or skipped; no event counts twice",
  ),
)
