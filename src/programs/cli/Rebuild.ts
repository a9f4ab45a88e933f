/** `rebuild`: computes embeddings again from the log. */
import { Options } from "@effect/cli"
import { Effect, Layer, Option, Schema, Stream } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { UserId } from "../../services/model/Interaction.ts"
import * as Rebuilder from "../../services/operate/Rebuilder.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import * as PairCounter from "../../services/recommend/PairCounter.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { json, print } from "./support/Output.ts"
import { counting, figure, sayingWhere } from "./support/Progress.ts"
import { BadUsage, command, flag, maybe, onlyUser } from "./support/Usage.ts"

/** All users before are done, so the command can go on where it stopped. */
class RebuildStopped extends Schema.TaggedError<RebuildStopped>()("RebuildStopped", {
  rebuilt: Schema.Number,
  reason: Schema.String,
  goOn: Schema.String,
}) {
  override get message() {
    return `stopped after ${this.rebuilt} embeddings: ${this.reason}; go on with ${this.goOn}`
  }
}

/** The report names the users and the reasons. */
class NotRebuilt extends Schema.TaggedError<NotRebuilt>()("NotRebuilt", { failed: Schema.Number }) {
  override get message() {
    return `${this.failed} embeddings could not be rebuilt and are unchanged`
  }
}

/** The pairs of pruned events exist in the stored counts alone. */
class PairsPruned extends Schema.TaggedError<PairsPruned>()("PairsPruned", {}) {
  override get message() {
    return "events are pruned from the log, and their pairs would be lost: the pairs stay as they are; --allow-missing counts them anew without these events"
  }
}

const rebuildPairs = Effect.fnUntraced(function* (allowMissing: boolean, asJson: boolean) {
  const log = yield* InteractionLog
  if (!allowMissing && Option.isSome(yield* Stream.runHead(log.pruned.allIds)))
    return yield* new PairsPruned()
  const { rebuild } = yield* PairCounter.PairCounter
  const upTo = yield* sayingWhere(
    rebuild(() => Effect.void),
    () => "stopped; a worker goes on with it, or run it again from the beginning",
  )
  yield* print(asJson, { counted_up_to: upTo }, () => `pairs counted anew, up to row ${upTo} of the log`)
})

export const rebuild = command(
  "rebuild",
  "Computes embeddings again from the recorded events, after a change of model, weights, decay or history",
  {
    user: onlyUser("Rebuild only this user"),
    all: flag("all", "Rebuild all users who have an embedding"),
    after: maybe(
      Options.text("after").pipe(Options.withSchema(Schema.typeSchema(UserId))),
      "With --all: go on after this user, where an earlier rebuild stopped",
    ),
    allowMissing: flag("allow-missing", "Leave out events whose row or vector no longer exists"),
    pairs: flag(
      "pairs",
      "Count anew which products people interact with together, instead of computing embeddings",
    ),
    json,
  },
  ({ after, all, allowMissing, json, pairs, user }) =>
    Effect.gen(function* () {
      if (pairs) {
        if (all || Option.isSome(user))
          return yield* new BadUsage({ message: "give --pairs without --all and --user" })
        return yield* rebuildPairs(allowMissing, json)
      }
      if (all === Option.isSome(user)) return yield* new BadUsage({ message: "give either --user or --all" })
      if (!all && Option.isSome(after)) return yield* new BadUsage({ message: "--after needs --all" })
      let done = Option.getOrNull(after)
      const goOn = (last: string | null) =>
        [
          "user-embeddings rebuild",
          ...Option.match(user, { onNone: () => ["--all"], onSome: (one) => ["--user", one] }),
          ...(all && last !== null ? ["--after", last] : []),
          ...(allowMissing ? ["--allow-missing"] : []),
        ].join(" ")
      const rebuilder = yield* Rebuilder.Rebuilder
      const report = yield* counting(
        "users",
        (progress) =>
          rebuilder.rebuild({
            user: Option.getOrUndefined(user),
            after: Option.getOrUndefined(after),
            allowMissing,
            progress,
            completed: (upTo) => {
              done = upTo
            },
          }),
        ({ count }) => `stopped after ${figure(count)} users; go on with ${goOn(done)}`,
      )
      yield* print(json, report, ({ failures, rebuilt }) =>
        [`${rebuilt} embeddings rebuilt`, ...failures.map(({ reason }) => reason)].join("\n"),
      )
      const { rebuilt, stopped } = report
      if (stopped !== undefined)
        return yield* new RebuildStopped({ rebuilt, reason: stopped.reason, goOn: goOn(stopped.after) })
      if (report.failed > 0) return yield* new NotRebuilt({ failed: report.failed })
    }).pipe(
      Effect.provide(
        Layer.merge(Rebuilder.layer, PairCounter.layer).pipe(
          Layer.provide(EventVectors.layer),
          Layer.provideMerge(Stack.layer),
        ),
      ),
    ),
)
