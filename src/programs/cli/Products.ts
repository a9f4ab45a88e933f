/** `products import`: stores products from a file. */
import { Args, Command } from "@effect/cli"
import { Effect, Layer } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { importProducts } from "../tasks/ImportProducts.ts"
import * as Provision from "../tasks/ProvisionServers.ts"
import { encoding } from "./Import.ts"
import { json, print } from "./support/Output.ts"
import { measured } from "./support/Progress.ts"
import { command, flag, given } from "./support/Usage.ts"

const productsImport = command(
  "import",
  "Stores the products of the shop from a file, and embeds those without a vector from their text",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription('JSON Lines: {"product_id","product_name","category","text"?,"vector"?}'),
    ),
    encoding,
    strict: flag("strict", "Stop at the first bad line"),
    json,
  },
  ({ encoding, file, json, strict }) =>
    Effect.gen(function* () {
      const report = yield* measured("lines", (progress) =>
        importProducts(file, {
          strict,
          ...given({ encoding }),
          progress: (line) => progress({ count: line, line: line + 1 }),
        }),
      )
      const unlisted = report.bad_not_listed ?? 0
      const rejected = report.bad.length + unlisted
      yield* print(json, report, ({ bad, created, imported }) =>
        [
          `${imported} products imported, ${created} of them new, ${rejected} lines rejected`,
          ...bad.map(({ line, reason }) => `line ${line}: ${reason}`),
          ...(unlisted > 0 ? [`and ${unlisted} more`] : []),
        ].join("\n"),
      )
      if (rejected > 0)
        return yield* new Provision.CommandFailed({ message: `${rejected} lines were rejected` })
    }).pipe(Effect.provide(Layer.provideMerge(EventVectors.layer, Stack.layer))),
)

export const products = Command.make("products").pipe(
  Command.withDescription("Manage the products of the shop"),
  Command.withSubcommands([productsImport]),
)
