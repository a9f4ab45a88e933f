/** `products import`, `products export` and `products remove`. */
import { Args, Command, Options } from "@effect/cli"
import { Effect, Layer, Option, Schema } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { ProductId } from "../../services/model/Interaction.ts"
import { removeProducts } from "../../services/recommend/ProductWriter.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { exportProducts } from "../tasks/ExportData.ts"
import { importProducts } from "../tasks/ImportProducts.ts"
import * as Provision from "../tasks/ProvisionServers.ts"
import { formatOf, out, report, stopped, textFormats } from "./Export.ts"
import { reading, toForm } from "./Import.ts"
import { json, print } from "./support/Output.ts"
import { counting, figure, measured } from "./support/Progress.ts"
import { command, flag, maybe } from "./support/Usage.ts"

const productsImport = command(
  "import",
  "Stores the products of the shop from a file, and embeds those without a vector from their text",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription(
        'JSON Lines: {"product_id","product_name","category","text"?,"vector"?,"available"?,"attributes"?}, or CSV with these columns and attributes.NAME',
      ),
    ),
    format: reading.format,
    delimiter: reading.delimiter,
    encoding: reading.encoding,
    replace: flag(
      "replace",
      "The file is the whole catalogue: what it lacks becomes unavailable, and what it has available, unless a line says otherwise",
    ),
    dryRun: flag("dry-run", "Only count what would be imported, created and made unavailable"),
    strict: flag("strict", "Stop at the first bad line"),
    json,
  },
  ({ dryRun, file, json, replace, strict, ...form }) =>
    Effect.gen(function* () {
      const done = yield* measured("lines", (progress) =>
        importProducts(file, {
          strict,
          replace,
          dryRun,
          form: toForm(file, form),
          progress: (line) => progress({ count: line, line: line + 1 }),
        }),
      )
      const unlisted = done.bad_not_listed ?? 0
      const rejected = done.bad.length + unlisted
      const products = dryRun ? "products would be" : "products"
      yield* print(json, { ...done, dry_run: dryRun }, ({ bad, created, imported, made_unavailable }) =>
        [
          `${imported} ${products} imported, ${created} of them new, ${rejected} lines rejected`,
          ...(made_unavailable === undefined
            ? []
            : [
                rejected > 0 || imported === 0
                  ? `nothing was made unavailable, because ${rejected > 0 ? "lines were rejected" : "the file has no product"}`
                  : `${made_unavailable} ${products} made unavailable, because the file lacks them`,
              ]),
          ...bad.map(({ line, reason }) => `line ${line}: ${reason}`),
          ...(unlisted > 0 ? [`and ${unlisted} more`] : []),
        ].join("\n"),
      )
      if (rejected > 0)
        return yield* new Provision.CommandFailed({ message: `${rejected} lines were rejected` })
      if (replace && done.imported === 0)
        return yield* new Provision.CommandFailed({ message: "the file has no product" })
    }).pipe(Effect.provide(Layer.provideMerge(EventVectors.layer, Stack.layer))),
)

const productsExport = command(
  "export",
  "Writes the products with their attributes, in the format of `products import`",
  {
    format: maybe(Options.choice("format", textFormats), "Default: by the name of the file, else jsonl"),
    out,
    json,
  },
  ({ format, json, out }) =>
    counting(
      "products",
      (progress) => exportProducts({ format: formatOf(textFormats, format, out), out, progress }),
      stopped("products", out),
    ).pipe(
      Effect.flatMap((done) =>
        report(json, Option.isSome(out), done, ({ exported, files, other_space, space }) =>
          [
            `${figure(exported)} products in ${space}${files.length > 0 ? ` → ${files.join(", ")}` : ""}`,
            ...(other_space > 0
              ? [`${figure(other_space)} products left out, because their vectors are in another space`]
              : []),
          ].join("\n"),
        ),
      ),
      Effect.provide(Stack.layer),
    ),
)

const productsRemove = command(
  "remove",
  "Deletes products: they are never recommended again, and their events still count",
  {
    ids: Args.text({ name: "id" }).pipe(Args.withSchema(Schema.typeSchema(ProductId)), Args.atLeast(1)),
    json,
  },
  ({ ids, json }) =>
    Effect.gen(function* () {
      const removed = yield* removeProducts(ids)
      const unknown = [...new Set(ids)].filter((id) => !removed.has(id))
      yield* print(json, { removed: [...removed], unknown }, () =>
        [
          `${removed.size} products removed`,
          ...(unknown.length > 0 ? [`there is no product ${unknown.join(", ")}`] : []),
        ].join("\n"),
      )
    }).pipe(Effect.provide(Stack.layer)),
)

export const products = Command.make("products").pipe(
  Command.withDescription("Manage the products of the shop"),
  Command.withSubcommands([productsImport, productsExport, productsRemove]),
)
