/** `export embeddings` and `export interactions`. */
import { extname } from "node:path"
import { Command, Options } from "@effect/cli"
import { Console, Effect, Layer, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Catalogue from "../../services/recommend/Catalogue.ts"
import { Read } from "../../services/recommend/EmbeddingReads.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { embeddingFormats, exportEmbeddings, exportInteractions } from "../tasks/ExportData.ts"
import { json, print } from "./support/Output.ts"
import { counting, figure, type Stopped } from "./support/Progress.ts"
import { command, eventType, given, instant, maybe, onlyUser } from "./support/Usage.ts"

export const out = Options.file("out").pipe(
  Options.withAlias("o"),
  Options.withDescription("File to write; default: stdout"),
  Options.optional,
)

/** The given format, else by the file's name, else the first. */
export const formatOf = <Format extends string>(
  formats: readonly [Format, ...ReadonlyArray<Format>],
  given: Option.Option<Format>,
  out: Option.Option<string>,
): Format => {
  const ending = extname(Option.getOrElse(out, () => "")).slice(1)
  return Option.getOrElse(given, () => formats.find((format) => format === ending) ?? formats[0])
}

/** What is on stdout stays there. A file is not written by halves. */
export const stopped =
  (things: string, out: Option.Option<string>): Stopped =>
  ({ count }) =>
    `stopped after ${figure(count)} ${things}; ${Option.isSome(out) ? "no file was written; " : ""}run it again from the beginning`

/** The report goes to stderr when the data goes to stdout. */
export const report = <A extends { readonly files: ReadonlyArray<string> }>(
  json: boolean,
  toFile: boolean,
  value: A,
  human: (value: A) => string,
) => (toFile ? print(json, value, human) : Console.error(json ? JSON.stringify(value) : human(value)))

const reading = Layer.mergeAll(Catalogue.layer, EventVectors.layer).pipe(Layer.provideMerge(Stack.layer))

const embeddings = command(
  "embeddings",
  "Writes the embeddings of all users, or of users that changed, to a file for other programs",
  {
    format: maybe(
      Options.choice("format", embeddingFormats),
      "Default: by the name of the file, else jsonl. npy writes the user ids to a second file",
    ),
    out,
    read: Options.choice("read", Read.literals).pipe(
      Options.withDefault("stored" as const),
      Options.withDescription(
        "stored = the embeddings that events change; taste = the vectors that recommendations use, at this moment",
      ),
    ),
    since: instant(
      "since",
      "Only embeddings written since this time, and in jsonl also the users who have none any more",
    ),
    json,
  },
  ({ format, json, out, read, since }) =>
    counting(
      "users",
      (progress) =>
        exportEmbeddings({
          format: formatOf(embeddingFormats, format, out),
          out,
          read,
          since: Option.getOrUndefined(Option.map(since, Date.parse)),
          progress,
        }),
      stopped("users", out),
    ).pipe(
      Effect.flatMap((done) =>
        report(
          json,
          Option.isSome(out),
          done,
          ({ exported, files, gone, other_space, space, without_taste }) =>
            [
              `${figure(exported)} users in ${space}${files.length > 0 ? ` → ${files.join(", ")}` : ""}`,
              ...(gone > 0 ? [`${figure(gone)} users without an embedding, to remove`] : []),
              ...(without_taste > 0
                ? [`${figure(without_taste)} users left out, because their taste has no direction`]
                : []),
              ...(other_space > 0
                ? [
                    `${figure(other_space)} users left out, because their embeddings are in another space: user-embeddings rebuild --all`,
                  ]
                : []),
            ].join("\n"),
        ),
      ),
      Effect.provide(reading),
    ),
)

export const textFormats = ["jsonl", "csv"] as const

const interactions = command(
  "interactions",
  "Writes the recorded events in the format of `import interactions`",
  {
    format: maybe(Options.choice("format", textFormats), "Default: by the name of the file, else jsonl"),
    out,
    user: onlyUser("Only events of this user"),
    type: eventType("type", "Only events of this type"),
    since: instant("since", "Only events that occurred at or after this time"),
    until: instant("until", "Only events that occurred before this time"),
    recordedSince: instant("recorded-since", "Only events that were recorded at or after this time"),
    json,
  },
  ({ format, json, out, ...filter }) =>
    counting(
      "rows",
      (progress) =>
        exportInteractions({
          format: formatOf(textFormats, format, out),
          out,
          filter: given(filter),
          progress,
        }),
      stopped("rows", out),
    ).pipe(
      Effect.flatMap((done) =>
        report(
          json,
          Option.isSome(out),
          done,
          ({ exported, files }) =>
            `${figure(exported)} interactions${files.length > 0 ? ` → ${files.join(", ")}` : ""}`,
        ),
      ),
      Effect.provide(Stack.layer),
    ),
)

export const exports = Command.make("export").pipe(
  Command.withDescription("Write embeddings or events to files for other programs"),
  Command.withSubcommands([embeddings, interactions]),
)
