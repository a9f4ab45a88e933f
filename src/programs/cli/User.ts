/** `user show`, `user export` and `user erase`. */
import { Args, Command } from "@effect/cli"
import { Effect, Layer, Option, Schema } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { UserId } from "../../services/model/Interaction.ts"
import * as Eraser from "../../services/operate/Eraser.ts"
import { showUser } from "../../services/operate/ShowUser.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { exportUser } from "../tasks/ExportData.ts"
import { out, report, stopped } from "./Export.ts"
import { json, print, table } from "./support/Output.ts"
import { counting, figure, sayingWhere, waiting } from "./support/Progress.ts"
import { command, confirm, yes } from "./support/Usage.ts"

const percent = (share: number | null) => (share === null ? "not applied" : `${(share * 100).toFixed(1)} %`)

const userShow = command(
  "show",
  "Shows a user's embedding, the newest events with their share of its weight, and the products with the greatest cosine to it. Recommendations compare products with the taste instead, and their `because` has shares of a score",
  { user: Args.text({ name: "user" }).pipe(Args.withSchema(Schema.typeSchema(UserId))), json },
  ({ json, user }) =>
    showUser(user).pipe(
      Effect.provide(Stack.layer),
      waiting("reading the user"),
      Effect.flatMap((shown) =>
        print(json, shown, ({ events, nearest_products, metadata, ...facts }) =>
          [
            table(
              ["FIELD", "VALUE"],
              Object.entries({ ...facts, ...metadata }).map(([field, value]) => [field, String(value)]),
            ),
            table(
              ["OCCURRED AT", "EVENT", "WHAT", "SHARE OF WEIGHT"],
              events.map((event) => [
                event.occurred_at,
                event.event_type,
                event.reference ?? "",
                percent(event.share),
              ]),
            ),
            table(
              ["NEAREST TO THE STORED VECTOR", "NAME", "CATEGORY", "COSINE"],
              nearest_products.map(({ category, cosine, product_id, product_name }) => [
                product_id,
                product_name ?? "",
                category ?? "",
                cosine.toFixed(3),
              ]),
            ),
          ].join("\n\n"),
        ),
      ),
    ),
)

const userExport = command(
  "export",
  "Writes all that is stored about a user as one JSON document: embedding, events, dead letters",
  { user: Args.text({ name: "user" }).pipe(Args.withSchema(Schema.typeSchema(UserId))), out, json },
  ({ json, out, user }) =>
    counting("rows", (progress) => exportUser({ user, out, progress }), stopped("rows", out)).pipe(
      Effect.flatMap((done) =>
        report(json, Option.isSome(out), done, ({ dead_letters, embedding, files, interactions }) =>
          [
            `user ${user}: ${figure(interactions)} interactions, ${embedding ? "an" : "no"} embedding`,
            `${figure(dead_letters)} dead letters${files.length > 0 ? ` → ${files.join(", ")}` : ""}`,
          ].join(", "),
        ),
      ),
      Effect.provide(Stack.layer),
    ),
)

const userErase = command(
  "erase",
  "Erases all data of a user, including queued events; asks before unless --yes",
  { user: Args.text({ name: "user" }).pipe(Args.withSchema(Schema.typeSchema(UserId))), yes, json },
  ({ json, user, yes }) =>
    Effect.gen(function* () {
      yield* confirm(`Erase user ${user} everywhere?`, yes)
      const { erase } = yield* Eraser.Eraser
      const report = yield* sayingWhere(erase(user), () => "stopped; run it again to erase what is left")
      yield* print(json, report, ({ dead_letters, embedding, interactions, other_ids, phrases }) =>
        [
          `user ${[user, ...other_ids].join(", ")} is erased: ${interactions} interactions, ${embedding ? "the" : "no"} embedding`,
          `${phrases} vectors of search phrases, ${dead_letters} dead letters`,
        ].join(", "),
      )
    }).pipe(
      Effect.provide(Eraser.layer.pipe(Layer.provide(EventVectors.layer), Layer.provideMerge(Stack.layer))),
    ),
)

export const user = Command.make("user").pipe(
  Command.withDescription("Show, export or erase one user"),
  Command.withSubcommands([userShow, userExport, userErase]),
)
