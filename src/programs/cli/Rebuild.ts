/** `rebuild`: computes embeddings again from the log. */
import { Effect, Layer, Option, Schema } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Rebuilder from "../../services/operate/Rebuilder.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { json, print } from "./support/Output.ts"
import { counting } from "./support/Progress.ts"
import { BadUsage, command, flag, onlyUser } from "./support/Usage.ts"

/** The report names the users and the reasons. */
class NotRebuilt extends Schema.TaggedError<NotRebuilt>()("NotRebuilt", { failed: Schema.Number }) {
  override get message() {
    return `${this.failed} embeddings could not be rebuilt and are unchanged`
  }
}

export const rebuild = command(
  "rebuild",
  "Computes embeddings again from the recorded events, after a change of model, weights, decay or history",
  {
    user: onlyUser("Rebuild only this user"),
    all: flag("all", "Rebuild all users who have an embedding"),
    allowMissing: flag("allow-missing", "Leave out events whose row or vector no longer exists"),
    json,
  },
  ({ all, allowMissing, json, user }) =>
    Effect.gen(function* () {
      if (all === Option.isSome(user)) return yield* new BadUsage({ message: "give either --user or --all" })
      const rebuilder = yield* Rebuilder.Rebuilder
      const report = yield* counting("users", (progress) =>
        rebuilder.rebuild({ user: Option.getOrUndefined(user), allowMissing, progress }),
      )
      yield* print(json, report, ({ failures, rebuilt }) =>
        [`${rebuilt} embeddings rebuilt`, ...failures.map(({ reason }) => reason)].join("\n"),
      )
      if (report.failed > 0) return yield* new NotRebuilt({ failed: report.failed })
    }).pipe(
      Effect.provide(
        Rebuilder.layer.pipe(Layer.provide(EventVectors.layer), Layer.provideMerge(Stack.layer)),
      ),
    ),
)
