/** `import interactions`: records a history from a file. */
import { Args, Command, Options } from "@effect/cli"
import { Effect, Either, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as EmbeddingConfig from "../../services/EmbeddingConfig.ts"
import { dateFormat } from "../../services/history/FileTimestamps.ts"
import { mappable, type Reading, typesByWord } from "../../services/history/InteractionFile.ts"
import { type Form, formOf } from "../../services/history/RecordSplitter.ts"
import { defaults } from "../../services/model/EventTypes.ts"
import { type ImportOptions, importInteractions } from "../tasks/ImportInteractions.ts"
import { CommandFailed } from "../tasks/ProvisionServers.ts"
import { json, print } from "./support/Output.ts"
import { duration, figure, measured } from "./support/Progress.ts"
import { BadUsage, command, flag, given, invalid, maybe } from "./support/Usage.ts"

/** `a=b,c=d`, repeatable; `left` lists the names allowed on the left. */
const pairs = (name: string, description: string, left?: ReadonlyArray<string>) =>
  Options.text(name).pipe(
    Options.withPseudoName("A=B,…"),
    Options.withDescription(description),
    Options.repeated,
    Options.mapEffect((texts) =>
      Effect.flatMap(
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
        (all) => {
          const named: Readonly<Record<string, string>> = Object.fromEntries(all)
          const twice = all.find(([key, value]) => named[key] !== value)
          return twice === undefined
            ? Effect.succeed(named)
            : invalid(`--${name}: ${twice[0]} is given twice, as ${twice[1]} and as ${named[twice[0]]}`)
        },
      ),
    ),
  )

/** An option whose text `check` refuses with a reason. */
const checked = (name: string, description: string, check: (text: string) => string | undefined) =>
  maybe(
    Options.text(name).pipe(
      Options.mapEffect((text) => {
        const problem = check(text)
        return problem === undefined ? Effect.succeed(text) : invalid(`--${name} ${text}: ${problem}`)
      }),
    ),
    description,
  )

const isEncoding = (label: string) => {
  try {
    return new TextDecoder(label as Bun.Encoding) !== undefined
  } catch {
    return false
  }
}
const encoding = checked(
  "encoding",
  "Encoding of the file, such as latin1 or windows-1252; default: UTF-8",
  (label) =>
    /^(utf-?16|ucs-2|iso-2022)/i.test(label)
      ? "can't be read; iconv -t UTF-8 converts the file"
      : isEncoding(label)
        ? undefined
        : "must be an encoding, such as windows-1252, iso-8859-2 or shift_jis",
)

const isTimezone = (zone: string) => {
  try {
    return Temporal.Now.zonedDateTimeISO(zone) !== undefined
  } catch {
    return false
  }
}

export const reading = {
  format: maybe(
    Options.choice("format", ["jsonl", "csv"]),
    "Default: csv for names that end in .csv or .tsv, also with .gz, else jsonl",
  ),
  delimiter: checked(
    "delimiter",
    "Character between the cells of a CSV file, or tab; default: a comma, in .tsv a tab",
    (text) =>
      /^([ -~\t]|tab|\\t)$/.test(text) && text !== '"' ? undefined : "must be one ASCII character, or tab",
  ),
  encoding,
  map: pairs(
    "map",
    `Columns with other names, such as user_id=customer, product_id=properties.product_id in nested objects, or user_id=userId|anonymousId for the first that has a value; fields: ${mappable.join(", ")}`,
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
  timezone: checked(
    "timezone",
    "Time zone of times without an offset, such as Europe/Berlin; default: UTC",
    (zone) => (isTimezone(zone) ? undefined : "must be a time zone, such as Europe/Berlin or +01:00"),
  ),
  dateFormat: checked(
    "date-format",
    "Form of the times if they are not ISO 8601 or Unix time, such as dd.MM.yyyy HH:mm",
    (format) => Either.match(dateFormat(format), { onLeft: (problem) => problem, onRight: () => undefined }),
  ),
  ignore: Options.text("ignore").pipe(
    Options.withPseudoName("COLUMN,…"),
    Options.withDescription("Columns not to store as metadata; * for all"),
    Options.repeated,
    Options.map((texts) => texts.flatMap((text) => text.split(",").map((column) => column.trim()))),
  ),
}

/** Event types that `--types` and `--set` name must be configured. */
const requireEventTypes = Effect.fnUntraced(function* ({ set, types }: Pick<Reading, "types" | "set">) {
  const configured = yield* Effect.orElseSucceed(EmbeddingConfig.eventTypes, () => defaults)
  const known = typesByWord(configured)
  const refuse = (option: string) =>
    new BadUsage({ message: `${option}: must be one of ${[...known.keys()].join(", ")}` })
  for (const [value, type] of Object.entries(types))
    if (!known.has(type)) return yield* refuse(`--types ${value}=${type}`)
  const { event_type: type } = set
  if (type !== undefined && !known.has(type) && !Object.hasOwn(types, type))
    return yield* refuse(`--set event_type=${type}`)
})

/** The form of a file: as its options say, else by its name. */
export const toForm = (
  file: string,
  {
    delimiter,
    encoding,
    format,
  }: Pick<Command.Command.ParseConfig<typeof reading>, "delimiter" | "encoding" | "format">,
): Form => {
  const byName = formOf(file)
  return {
    format: Option.getOrElse(format, () => byName.format),
    delimiter: Option.getOrElse(delimiter, () => byName.delimiter).replace(/^(tab|\\t)$/, "\t"),
    ...given({ encoding: Option.filter(encoding, (label) => !/^utf-?8$/i.test(label)) }),
  }
}

export const toReading = Effect.fnUntraced(function* (
  file: string,
  options: Command.Command.ParseConfig<typeof reading>,
) {
  yield* requireEventTypes(options)
  const { dateFormat, ignore, map, set, timezone, types } = options
  const result: Reading = {
    ...toForm(file, options),
    map,
    types,
    set,
    ignore,
    ...given({ dateFormat, timezone }),
  }
  return result
})

const importing = Effect.fnUntraced(function* (
  file: string,
  json: boolean,
  options: Omit<ImportOptions, "progress">,
) {
  const report = yield* measured("records", (progress) => importInteractions(file, { ...options, progress }))
  yield* print(json, report, (report) =>
    [
      `${figure(report.records)} records: ${figure(report.recorded)} recorded, ${figure(report.duplicates)} recorded before, ${figure(report.rejected)} rejected; ${duration(report.seconds)}${report.resumed_at_line > 1 ? `, from line ${figure(report.resumed_at_line)}` : ""}`,
      ...(report.first_rejected === null ? [] : [`First rejected: ${report.first_rejected}`]),
      ...(report.rejected_file === null ? [] : [`Rejected records with reasons: ${report.rejected_file}`]),
      ...(report.recorded > 0
        ? [
            "The recorded events wait in the outbox until `user-embeddings up`, `api` or `relay` publishes them.",
          ]
        : []),
    ].join("\n"),
  )
  if (report.rejected > 0)
    return yield* new CommandFailed({
      message: `${report.rejected} records were rejected`,
    })
})

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
    complete: flag("complete", "Record the last line of a CSV file although no line end follows it"),
    json,
  },
  ({ file, json, ...options }) =>
    Effect.flatMap(toReading(file, options), (reading) =>
      importing(file, json, { ...options, reading }).pipe(Effect.provide(Stack.layer)),
    ),
)

export const imports = Command.make("import").pipe(
  Command.withDescription("Record past events from a file"),
  Command.withSubcommands([importInteractionsCommand]),
)
