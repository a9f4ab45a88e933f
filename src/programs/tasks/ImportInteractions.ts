/**
 * `import interactions FILE`: a history → InteractionLog. From there it is published and folded like every interaction.
 * A state file, written after each commit, says how far the import is, so an import that was killed continues where it
 * stopped. Rows committed after the last state are recognised as duplicates by their message ids.
 */
import { createHash } from "node:crypto"
import { basename, dirname, join, resolve } from "node:path"
import { FileSystem } from "@effect/platform"
import { Clock, Effect, Either, Option, Redacted, Schema, Stream } from "effect"
import * as RecordFile from "../../layers/files/RecordFile.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import type { Reading } from "../../services/history/InteractionFile.ts"
import * as InteractionFile from "../../services/history/InteractionFile.ts"
import type { RawRecord } from "../../services/history/RecordSplitter.ts"
import type { InteractionLogError, NewInteraction } from "../../services/ports/InteractionLog.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import * as RetryPolicies from "../../services/RetryPolicies.ts"
import * as RetractionRequests from "../../services/record/RetractionRequests.ts"
import type { Requested } from "../../services/record/Submission.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import type { Reached } from "../cli/support/Progress.ts"

const rowsAtOnce = 1_000
/** Bytes at the beginning of a file that identify it. */
const fingerprinted = 64 * 1024
/** Characters of a rejected record that are kept. */
const longestRejected = 4_096

const State = Schema.Struct({
  file: Schema.String,
  /** Hash of the log's address, the reading options and the first `fingerprinted_bytes` of the file. */
  fingerprint: Schema.String,
  fingerprinted_bytes: Schema.Number,
  columns: Schema.Array(Schema.String),
  offset: Schema.Number,
  line: Schema.Number,
  recorded: Schema.Number,
  duplicates: Schema.Number,
  rejected: Schema.Number,
  rejected_bytes: Schema.Number,
})
type State = typeof State.Type
const decodeState = Schema.decodeUnknownOption(Schema.parseJson(State))

export interface ImportOptions {
  readonly reading: Reading
  /** The state file; the rejected records are stored beside it. */
  readonly state: Option.Option<string>
  readonly restart: boolean
  readonly strict: boolean
  /** The last record of a CSV file is complete although no line end follows it. */
  readonly complete?: boolean
  readonly progress: (reached: Reached) => Effect.Effect<void>
}

export class ImportRefused extends Schema.TaggedError<ImportRefused>()("ImportRefused", {
  message: Schema.String,
}) {}

/** Under DATA_DIR, named after the file. */
const defaultState = (file: string) =>
  Effect.map(Settings.DATA_DIR, (directory) => {
    const name = createHash("sha256").update(file).digest("hex").slice(0, 8)
    return join(directory, "imports", `${basename(file)}.${name}.json`)
  })

/** Address of the log: the state of an import into one log says nothing about another. */
const target = Effect.gen(function* () {
  const url = yield* Settings.MYSQL_URL
  return Option.isSome(url) ? Redacted.value(url.value) : resolve(yield* Settings.DATA_DIR)
})

const hash = Effect.fnUntraced(function* (reading: Reading, beginning: Uint8Array) {
  const options = JSON.stringify([yield* target, reading])
  return createHash("sha256").update(options).update(beginning).digest("hex")
})

/** State of an earlier import; `None` when there is none, or when it belongs to another file, log or reading. */
const storedState = Effect.fnUntraced(function* (file: string, stateFile: string, reading: Reading) {
  const files = yield* FileSystem.FileSystem
  const text = yield* Effect.option(files.readFileString(stateFile))
  const state = Option.flatMap(text, decodeState)
  if (Option.isNone(state)) return Option.none<State>()
  const beginning = yield* RecordFile.beginningOf(file, state.value.fingerprinted_bytes)
  const size = yield* RecordFile.sizeOf(file)
  const isSame =
    (yield* hash(reading, beginning)) === state.value.fingerprint &&
    (size === undefined || size >= state.value.offset)
  if (isSame) return state
  yield* Effect.logWarning("import.restarted").pipe(
    Effect.annotateLogs({
      reason: "the state belongs to another file, other options or another log",
      state: stateFile,
    }),
  )
  return Option.none<State>()
})

export const beginningOfRecords = (file: string, reading: Reading) =>
  RecordFile.beginningOfRecords(file, reading, {
    headerProblem: (columns) => InteractionFile.headerProblem(columns, reading),
    help: "user-embeddings import interactions --help explains the format and the options",
  })

const initialState = Effect.fnUntraced(function* (file: string, reading: Reading) {
  const beginning = yield* RecordFile.beginningOf(file, fingerprinted)
  return {
    file,
    fingerprint: yield* hash(reading, beginning),
    fingerprinted_bytes: beginning.length,
    ...(yield* beginningOfRecords(file, reading)),
    recorded: 0,
    duplicates: 0,
    rejected: 0,
    rejected_bytes: 0,
  }
})

const replace = Effect.fnUntraced(function* (path: string, text: string) {
  const files = yield* FileSystem.FileSystem
  yield* files.writeFileString(`${path}.new`, text)
  yield* files.rename(`${path}.new`, path)
})

const isTransient = ({ reason }: InteractionLogError) => reason === "unavailable" || reason === "timeout"

/** Waits while the log is unavailable. */
const patiently = <A>(use: Effect.Effect<A, InteractionLogError, InteractionLog>) =>
  use.pipe(
    Effect.tapError((error) =>
      isTransient(error)
        ? Effect.logWarning("import.append_failed").pipe(Effect.annotateLogs(Telemetry.described(error)))
        : Effect.void,
    ),
    Effect.retry({ schedule: RetryPolicies.reconnectRetry, while: isTransient }),
  )

const append = (entries: ReadonlyArray<NewInteraction>) =>
  patiently(Effect.flatMap(InteractionLog, (log) => log.append(entries)))

/** Finds what retractions take back. */
const findRetracted = (items: ReadonlyArray<Requested>) => patiently(RetractionRequests.resolve(items))

type Decode = (record: RawRecord, now: number) => Either.Either<Requested, string>
type Rejected = readonly [record: RawRecord, reason: string]

/** Decodes records and appends them to the log; answers how many became which. */
const decodeAndAppend = Effect.fnUntraced(function* (records: ReadonlyArray<RawRecord>, decode: Decode) {
  const now = yield* Clock.currentTimeMillis
  const requested: Array<readonly [RawRecord, Requested]> = []
  const rejected: Array<Rejected> = []
  for (const record of records) {
    const decoded = record.problem === undefined ? decode(record, now) : Either.left(record.problem)
    if (Either.isLeft(decoded)) rejected.push([record, decoded.left])
    else requested.push([record, decoded.right])
  }
  const accepted: Array<RawRecord> = []
  const entries: Array<NewInteraction> = []
  for (const [index, resolved] of (yield* findRetracted(requested.map(([, item]) => item))).entries()) {
    const record = requested[index]![0]
    if (Either.isLeft(resolved)) rejected.push([record, `${resolved.left.field}: ${resolved.left.detail}`])
    else {
      accepted.push(record)
      entries.push({ ...resolved.right, trace: null, recordedAt: now })
    }
  }
  const answers = entries.length === 0 ? [] : yield* append(entries)
  let recorded = 0
  let duplicates = 0
  for (const [index, answer] of answers.entries()) {
    if (answer._tag === "Recorded") recorded += 1
    else if (answer._tag === "Duplicate") duplicates += 1
    else if (answer._tag === "Refused") rejected.push([accepted[index]!, `reference: ${answer.detail}`])
    else rejected.push([accepted[index]!, "idempotency_key: was used before by another interaction"])
  }
  return { recorded, duplicates, rejected }
})

/** Lines of the file of rejected records, in the order of the imported file. */
const toRejectedLines = (rejected: ReadonlyArray<Rejected>): Buffer => {
  const lines = rejected
    .toSorted(([a], [b]) => a.line - b.line)
    .map(([{ line, text }, reason]) => JSON.stringify({ line, reason, text: text.slice(0, longestRejected) }))
  return Buffer.from(lines.map((line) => `${line}\n`).join(""))
}

/** Of a packed file it is unknown how much is left. */
const toReached = (
  { duplicates, line, offset, recorded, rejected }: State,
  total: number | undefined,
): Reached => ({
  ...(total === undefined ? {} : { done: offset, total }),
  count: recorded + duplicates + rejected,
  line,
})

const incomplete = "has no line end, so it may be cut: --complete records it, or add the line end"

/** A CSV record that is cut can look whole, with another time or product. JSON shows whether it is whole. */
const wholeOnly =
  (decode: ReturnType<typeof InteractionFile.decoder>, isCut: (record: RawRecord) => boolean): Decode =>
  (record, now) =>
    Either.filterOrLeft(
      decode(record.text, now),
      () => !isCut(record),
      () => incomplete,
    )

/** The file of rejected records, without those of after the last state: they are read again. */
const openRejected = Effect.fnUntraced(function* (path: string, bytes: number) {
  const files = yield* FileSystem.FileSystem
  const rejects = yield* files.open(path, { flag: "a+" })
  yield* rejects.truncate(bytes)
  return rejects
})

export const importInteractions = Effect.fn("importInteractions")(function* (
  path: string,
  { complete = false, progress, reading, restart, state: stateOption, strict }: ImportOptions,
) {
  const files = yield* FileSystem.FileSystem
  const { eventTypes } = yield* EmbeddingConfig
  const file = resolve(path)
  const began = yield* Clock.currentTimeMillis
  const total = yield* RecordFile.sizeOf(file)
  const stateFile = Option.isSome(stateOption) ? resolve(stateOption.value) : yield* defaultState(file)
  const rejectedFile = stateFile.replace(/(\.json)?$/, ".rejected.jsonl")
  yield* files.makeDirectory(dirname(stateFile), { recursive: true })

  const known = restart ? Option.none<State>() : yield* storedState(file, stateFile, reading)
  let state: State = Option.isSome(known) ? known.value : yield* initialState(file, reading)
  const resumedAt = Option.isSome(known) ? state.line : 1
  const decode = wholeOnly(
    InteractionFile.decoder(reading, state.columns, eventTypes),
    ({ unterminated = false }) => unterminated && reading.format === "csv" && !complete,
  )
  /** The state with an unterminated last record, which the next run reads again. */
  let reached = state
  let firstRejected: string | undefined

  const rejects = yield* openRejected(rejectedFile, state.rejected_bytes)

  const importRecords = Effect.fnUntraced(function* (records: ReadonlyArray<RawRecord>) {
    const { duplicates, recorded, rejected } = yield* decodeAndAppend(records, decode)
    const lines = toRejectedLines(rejected)
    if (lines.length > 0) yield* rejects.writeAll(lines)
    const last = records.at(-1)!
    reached = {
      ...state,
      offset: last.end,
      line: last.nextLine,
      recorded: state.recorded + recorded,
      duplicates: state.duplicates + duplicates,
      rejected: state.rejected + rejected.length,
      rejected_bytes: state.rejected_bytes + lines.length,
    }
    if (last.unterminated !== true) state = reached
    // Uninterruptible, so that a stopped command names the line at which the next run begins.
    yield* Effect.uninterruptible(
      Effect.zipRight(replace(stateFile, JSON.stringify(state)), progress(toReached(reached, total))),
    )
    const [first] = rejected.toSorted(([a], [b]) => a.line - b.line)
    if (first !== undefined) firstRejected ??= `line ${first[0].line}: ${first[1]}`
    if (strict && firstRejected !== undefined) return yield* new ImportRefused({ message: firstRejected })
  })

  yield* progress(toReached(state, total))
  yield* Stream.runForEach(RecordFile.records(file, reading, state, rowsAtOnce), importRecords)

  const { duplicates, recorded, rejected } = reached
  if (rejected === 0) yield* files.remove(rejectedFile)
  return {
    file,
    /** Of all runs. */
    records: recorded + duplicates + rejected,
    recorded,
    duplicates,
    rejected,
    /** Line, reason and text of each rejected record. */
    rejected_file: rejected > 0 ? rejectedFile : null,
    /** Line and reason of the first of this run. */
    first_rejected: firstRejected ?? null,
    state_file: stateFile,
    resumed_at_line: resumedAt,
    /** Of this run. */
    seconds: ((yield* Clock.currentTimeMillis) - began) / 1_000,
  }
}, Effect.scoped)
