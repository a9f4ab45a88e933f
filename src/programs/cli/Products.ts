/** `products import`: stores products from a file. */
import { Args, Command } from "@effect/cli"
import { Effect, Layer } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { importProducts } from "../tasks/ImportProducts.ts"
import * as Provision from "../tasks/ProvisionServers.ts"
import { json, print } from "./support/Output.ts"
import { counting } from "./support/Progress.ts"
import { command, flag } from "./support/Usage.ts"

const productsImport = command(
  "import",
  "Stores the products of the shop from a file, and embeds those without a vector from their text",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription('JSON Lines: {"product_id","product_name","category","text"?,"vector"?}'),
    ),
    strict: flag("strict", "Stop at the first bad line"),
    json,
  },
  ({ file, json, strict }) =>
    Effect.gen(function* () {
      const report = yield* counting("lines", (progress) => importProducts(file, { strict, progress }))
      yield* print(json, report, ({ bad, created, imported }) =>
        [
          `${imported} products imported, ${created} of them new, ${bad.length} lines rejected`,
          ...bad.map(({ line, reason }) => `line ${line}: ${reason}`),
        ].join("\n"),
      )
      if (report.bad.length > 0)
        return yield* new Provision.CommandFailed({ message: `${report.bad.length} lines were rejected` })
    }).pipe(Effect.provide(Layer.provideMerge(EventVectors.layer, Stack.layer))),
)

export const products = Command.make("products").pipe(
  Command.withDescription("Manage the products of the shop"),
  Command.withSubcommands([productsImport]),
)
