/** `audit`: compares the log with the embeddings. */
import { Effect, Layer, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Auditor from "../../services/operate/Auditor.ts"
import { UserNotFound } from "../../services/operate/ShowUser.ts"
import { json, print, table } from "./support/Output.ts"
import { counting, figure } from "./support/Progress.ts"
import { command, flag, given, onlyUser } from "./support/Usage.ts"

export const audit = command(
  "audit",
  "Checks for every user that each recorded event counts exactly once; exits with 1 when events are missing or extra",
  {
    user: onlyUser("Audit only this user"),
    details: flag("details", `List the interactions, at most ${Auditor.mostDetails} of each state`),
    json,
  },
  ({ details, json, user }) =>
    Effect.gen(function* () {
      const auditor = yield* Auditor.Auditor
      const report = yield* counting(
        "rows",
        (progress) => auditor.audit({ ...given({ user }), details, progress }),
        ({ count }) => `stopped after ${figure(count)} rows; run it again from the beginning`,
      )
      if (Option.isSome(user) && report.users === 0)
        return yield* new UserNotFound({ user_id: user.value, known: false })
      yield* print(json, report, ({ details = [], ...counts }) =>
        [
          Object.entries(counts)
            .map(([what, count]) => `${count} ${what.replace("_", " ")}`)
            .join(" · "),
          ...(details.length === 0
            ? []
            : [
                "",
                table(
                  ["STATE", "USER", "EVENT", "PRODUCT", "OCCURRED AT", "MESSAGE ID"],
                  details.map(({ event_type, message_id, occurred_at, product_id, state, user_id }) => [
                    state,
                    user_id,
                    event_type ?? "",
                    product_id ?? "",
                    occurred_at ?? "",
                    message_id,
                  ]),
                ),
              ]),
        ].join("\n"),
      )
      const { extra, missing, not_erased } = report
      if (missing + extra + not_erased > 0)
        return yield* new Auditor.Inconsistent({ missing, extra, not_erased })
    }).pipe(Effect.provide(Layer.provideMerge(Auditor.layer, Stack.layer))),
)
