/** `import interactions`: records a history from a file. */
import { extname } from "node:path"
import { Args, Command, Options } from "@effect/cli"
import { Effect, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { type Format, mappable, type Reading } from "../../services/history/InteractionFile.ts"
import { importInteractions } from "../tasks/ImportInteractions.ts"
import { CommandFailed } from "../tasks/ProvisionServers.ts"
import { json, print } from "./support/Output.ts"
import { duration, figure, measured } from "./support/Progress.ts"
import { command, flag, invalid, maybe } from "./support/Usage.ts"

/** `a=b,c=d`, repeatable; `left` lists the names allowed on the left. */
const pairs = (name: string, description: string, left?: ReadonlyArray<string>) =>
  Options.text(name).pipe(
    Options.withPseudoName("A=B,…"),
    Options.withDescription(description),
    Options.repeated,
    Options.mapEffect((texts) =>
      Effect.map(
        Effect.forEach(
          texts.flatMap((text) => text.split(",")),
          (pair) => {
            const [, key = "", value = ""] = /^([^=]+)=(.*)$/.exec(pair) ?? []
            if (key === "") return invalid(`--${name} ${pair}: must be A=B`)
            return left === undefined || left.includes(key.trim())
              ? Effect.succeed([key.trim(), value.trim()] as const)
              : invalid(`--${name} ${pair}: the fields are ${left.join(", ")}`)
          },
        ),
        (all): Readonly<Record<string, string>> => Object.fromEntries(all),
      ),
    ),
  )

const formats: Readonly<Record<string, readonly [Format, string]>> = {
  ".csv": ["csv", ","],
  ".tsv": ["csv", "\t"],
}

export const reading = {
  format: maybe(
    Options.choice("format", ["jsonl", "csv"]),
    "Default: csv for names that end in .csv or .tsv, else jsonl",
  ),
  delimiter: maybe(
    Options.text("delimiter"),
    "Character between the cells of a CSV file; default: a comma, in .tsv a tab",
  ),
  map: pairs(
    "map",
    `Columns with other names, such as user_id=customer; fields: ${mappable.join(", ")}`,
    mappable,
  ),
  types: pairs(
    "types",
    "Other names of event types, such as buy=product_purchase; view, click and purchase are known",
  ),
  set: pairs(
    "set",
    "Fields with the same value in every record, such as event_type=product_purchase",
    mappable,
  ),
  ignore: Options.text("ignore").pipe(
    Options.withPseudoName("COLUMN,…"),
    Options.withDescription("Columns not to store as metadata; * for all"),
    Options.repeated,
    Options.map((texts) => texts.flatMap((text) => text.split(",").map((column) => column.trim()))),
  ),
}

export const toReading = (
  file: string,
  given: { readonly format: Option.Option<Format>; readonly delimiter: Option.Option<string> } & Pick<
    Reading,
    "map" | "types" | "set" | "ignore"
  >,
): Reading => {
  const [format, delimiter] = formats[extname(file).toLowerCase()] ?? (["jsonl", ","] as const)
  const { ignore, map, set, types } = given
  return {
    format: Option.getOrElse(given.format, () => format),
    delimiter: Option.getOrElse(given.delimiter, () => delimiter),
    map,
    types,
    set,
    ignore,
  }
}

const importInteractionsCommand = command(
  "interactions",
  "Records the past events of a shop from a file. If stopped, it continues where it was; a second run records only what is new",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription(
        "JSON Lines or CSV with user_id, event_type, search_phrase or product_id, occurred_at",
      ),
    ),
    ...reading,
    state: maybe(
      Options.file("state"),
      "File that stores the progress of the import; default: under DATA_DIR/imports",
    ),
    restart: flag("restart", "Read the file from its beginning, even if an earlier import got further"),
    strict: flag("strict", "Stop at the first bad record"),
    json,
  },
  ({ file, json, restart, state, strict, ...given }) =>
    Effect.gen(function* () {
      const report = yield* measured("records", (progress) =>
        importInteractions(file, { reading: toReading(file, given), state, restart, strict, progress }),
      )
      yield* print(json, report, (report) =>
        [
          `${figure(report.records)} records: ${figure(report.recorded)} recorded, ${figure(report.duplicates)} recorded before, ${figure(report.rejected)} rejected; ${duration(report.seconds)}${report.resumed_at_line > 1 ? `, from line ${figure(report.resumed_at_line)}` : ""}`,
          ...(report.rejected_file === null
            ? []
            : [`Rejected records with reasons: ${report.rejected_file}`]),
          ...(report.recorded > 0
            ? [
                "The recorded events wait in the outbox until `user-embeddings up`, `api` or `relay` publishes them.",
              ]
            : []),
        ].join("\n"),
      )
      if (report.rejected > 0)
        return yield* new CommandFailed({ message: `${report.rejected} records were rejected` })
    }).pipe(Effect.provide(Stack.layer)),
)

export const imports = Command.make("import").pipe(
  Command.withDescription("Record past events from a file"),
  Command.withSubcommands([importInteractionsCommand]),
)
