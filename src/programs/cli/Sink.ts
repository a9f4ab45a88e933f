/** `sink`: keeps a table of another database in step with the embeddings. */
import { Options } from "@effect/cli"
import { Effect, Layer, Logger, Option, Redacted, Schema } from "effect"
import * as PostgresSink from "../../layers/postgres/PostgresSink.ts"
import * as Stack from "../../layers/Stack.ts"
import * as Logging from "../../layers/telemetry/Logging.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as SinkFollower from "../../services/operate/SinkFollower.ts"
import * as Catalogue from "../../services/recommend/Catalogue.ts"
import * as EventVectors from "../../services/update/EventVectors.ts"
import { json, print } from "./support/Output.ts"
import { counting, figure } from "./support/Progress.ts"
import { BadUsage, command, flag, maybe } from "./support/Usage.ts"

/** The table has an index and a second table, whose longer names must be shorter than 64 bytes. */
const Table = Schema.String.pipe(
  Schema.filter(
    (name) =>
      /^([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,50}$/.test(name) ||
      "must be a name of small letters, digits and _, of at most 51 characters, with or without a schema",
  ),
)

class SinkDiffers extends Schema.TaggedError<SinkDiffers>()("SinkDiffers", {}) {
  override get message() {
    return "the table differs from what is stored: start the sink without --check, which mends it"
  }
}

const steps = Layer.mergeAll(Catalogue.layer, EventVectors.layer).pipe(Layer.provideMerge(Stack.layer))

const sinkAt = (to: string, table: string) =>
  Layer.unwrapEffect(
    Effect.map(EmbeddingConfig, ({ dimensions }) =>
      PostgresSink.layer({ url: Redacted.make(to), table, dimensions }),
    ),
  ).pipe(Layer.provideMerge(steps))

const check = (read: "stored" | "taste", asJson: boolean) =>
  Effect.gen(function* () {
    const found = yield* counting(
      "users",
      (progress) => SinkFollower.compare(read, progress),
      ({ count }) => `stopped after ${figure(count)} users`,
    )
    const { examples, extra, missing, rows, stored, vectors, versions } = found
    yield* print(asJson, found, () =>
      [
        `${figure(stored)} users stored, ${figure(rows)} rows`,
        `${figure(missing)} missing, ${figure(extra)} too many, ${figure(versions)} of another version, ${figure(vectors)} with another vector`,
        ...(examples.length > 0 ? [`such as ${examples.join(", ")}`] : []),
      ].join("\n"),
    )
    if (examples.length > 0) return yield* new SinkDiffers()
  })

export const sink = command(
  "sink",
  "Keeps a pgvector table in PostgreSQL in step with the embeddings: fills it, then follows the feed (EMBEDDING_FEED)",
  {
    to: maybe(
      Options.text("to"),
      "Database, as postgres://user@host:5432/db; the password may be in PGPASSWORD",
    ),
    table: Options.text("table").pipe(
      Options.withDescription("Table, with or without a schema; created if it is missing"),
      Options.withSchema(Table),
      Options.withDefault("user_embeddings"),
    ),
    read: Options.choice("read", ["stored", "taste"]).pipe(
      Options.withDescription("stored: the embedding; taste: what recommendations use, as of the last write"),
      Options.withDefault("stored" as const),
    ),
    check: flag("check", "Only compare all rows with what is stored; exit with 1 on a difference"),
    json,
  },
  ({ check: only, json, read, table, to }) =>
    Effect.gen(function* () {
      const url = Option.getOrElse(to, () => "")
      if (!/^postgres(ql)?:\/\/[^/]/.test(url) || !URL.canParse(url))
        return yield* new BadUsage({ message: "give --to, as in sink --to postgres://user@host:5432/db" })
      const layer = sinkAt(url, table)
      if (only) return yield* Effect.provide(check(read, json), layer)
      const level = yield* Logging.level("info")
      return yield* SinkFollower.follow(read).pipe(Effect.provide(layer), Logger.withMinimumLogLevel(level))
    }),
)
