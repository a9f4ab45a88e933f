/**
 * The MongoDB client of the embedding stores. It connects with the first call and reconnects by itself. While the server
 * is down, the layer starts all the same, and calls fail within seconds. Writes wait for the journal of a majority.
 */
import {
  Cause,
  Chunk,
  Clock,
  Config,
  ConfigError,
  Context,
  Duration,
  Effect,
  Either,
  Layer,
  Option,
  Redacted,
  Stream,
  Struct,
} from "effect"
import {
  type AggregationCursor,
  Binary,
  BSON,
  type Db,
  Decimal128,
  Double,
  type FindCursor,
  Long,
  MongoBulkWriteError,
  MongoClient,
  type MongoClientOptions,
  MongoError,
  MongoInvalidArgumentError,
  MongoNetworkError,
  MongoNetworkTimeoutError,
  MongoNotConnectedError,
  MongoOperationTimeoutError,
  MongoServerError,
  MongoServerSelectionError,
  MongoTopologyClosedError,
} from "mongodb"
import { isOutage, ServerOutage } from "../../services/Outages.ts"
import { clockFindings, type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import { type PortFailure, textOf } from "../../services/ports/PortFailure.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { within } from "../Deadline.ts"
import { type MissingObject, missingObjects } from "./MongoCollections.ts"
import { Reachability } from "./Reachability.ts"

export interface MongoOptions {
  readonly url: Redacted.Redacted
  readonly database: string
}

/** Calls to MongoDB that fail with the error of a port. */
export interface Calls<E> {
  /** One call with a deadline. Its span and its failure are named `{operation} {target}`: `find user_embeddings`. */
  readonly call: <A>(
    operation: string,
    target: string,
    run: () => Promise<A>,
    within?: Duration.Duration,
  ) => Effect.Effect<A, E>
  /** All documents of a cursor, one chunk per batch of the server. */
  readonly stream: <A>(
    target: string,
    open: () => FindCursor<A> | AggregationCursor<A>,
  ) => Stream.Stream<A, E>
}

export class Mongo extends Context.Tag("user-embeddings/Mongo")<
  Mongo,
  {
    readonly database: Db
    /** Call when the server may be out: if it is, calls fail at once until it answers again. */
    readonly doubt: () => void
    readonly failingWith: <E>(toError: (failure: PortFailure) => E) => Calls<E>
  }
>() {}

/** `timeoutMS` of driver 7.9 has no effect, so each phase of a call has a limit, and the whole call a deadline. */
const limits = {
  serverSelectionTimeoutMS: 5000,
  waitQueueTimeoutMS: 5000,
  connectTimeoutMS: 5000,
  socketTimeoutMS: 10_000,
} satisfies MongoClientOptions
/** The driver's default is 100 ms: at rest, that is a third of what a process does. */
const poolCheckMillis = 10_000
const callDeadline = Duration.seconds(15)
const pingDeadline = Duration.seconds(6)
const closeDeadline = Duration.seconds(3)

export const duplicateKey = 11000
const authenticationFailed = 18
const reasons = {
  /** The server steps down, shuts down or is no primary. A later call will find a primary. */
  unavailable: [91, 189, 10107, 11600, 11602, 13435, 13436],
  /** MaxTimeMSExpired, WriteConcernFailed, WriteConcernTimeout, ExceededTimeLimit. */
  timeout: [50, 64, 202, 262],
  /** InvalidBSON, DocumentValidationFailure, and documents that are too large: sent, or after an update. */
  invalid_data: [22, 121, 10334, 17419, 17420],
  /** WriteConflict, DuplicateKey. */
  conflict: [112, duplicateKey],
} satisfies Partial<Record<PortFailure["reason"], ReadonlyArray<number>>>
const reasonOfCode = new Map<unknown, PortFailure["reason"]>(
  Struct.entries(reasons).flatMap(([reason, codes]) => codes.map((code) => [code, reason] as const)),
)

/** Unknown stage or command, no vector search: other requests succeed on this server. */
const lacksFeature = (error: unknown): boolean =>
  error instanceof MongoServerError && [59, 115, 31082, 40324].includes(Number(error.code))

/** A bulk write wraps the error of the driver. */
const innermost = (error: unknown): unknown =>
  error instanceof MongoBulkWriteError && error.errorResponse instanceof Error ? error.errorResponse : error

/** Exported for its test. */
export const reasonOf = (error: unknown): PortFailure["reason"] => {
  if (error instanceof MongoServerError) return reasonOfCode.get(error.code) ?? "rejected"
  if (
    error instanceof MongoNetworkTimeoutError ||
    error instanceof MongoOperationTimeoutError ||
    Cause.isTimeoutException(error) ||
    (error instanceof MongoError && error.name === "MongoWaitQueueTimeoutError")
  )
    return "timeout"
  if (
    error instanceof MongoServerSelectionError ||
    error instanceof MongoNetworkError ||
    error instanceof MongoTopologyClosedError ||
    error instanceof MongoNotConnectedError
  )
    return "unavailable"
  // The driver refuses a document that is too large, and BSON one that cannot be coded.
  if (
    error instanceof MongoInvalidArgumentError ||
    error instanceof BSON.BSONError ||
    error instanceof TypeError ||
    error instanceof RangeError
  )
    return "invalid_data"
  // Other errors are not about data: a message must not become a dead letter because of them.
  return error instanceof MongoError ? "rejected" : "unavailable"
}

const failed =
  (server: string, operation: string) =>
  (error: unknown): PortFailure => {
    const cause = innermost(error)
    return { reason: reasonOf(cause), operation, cause, server }
  }

/** `MongoDB at a:27017,b:27017`. */
const nameOf = ({ options: { hosts, srvHost } }: MongoClient): string =>
  `MongoDB at ${srvHost ?? hosts.map(String).join(",")}`

/** Another writer has inserted the same key. */
export const isDuplicateKey = (error: unknown): boolean =>
  error instanceof MongoServerError && error.code === duplicateKey

/**
 * Indices of the operations of an unordered bulk write that the server refused with an expected code. Any other error is
 * thrown. Errors that concern all data come first, because the caller must not blame the data for them.
 */
export const refusals = (error: unknown, expected: ReadonlyArray<number>): ReadonlySet<number> => {
  if (!(error instanceof MongoBulkWriteError) || error.result.getWriteConcernError() !== undefined)
    throw error
  const errors = [error.writeErrors].flat()
  const unexpected = errors.filter(({ code }) => !expected.includes(code))
  const first = unexpected.find(({ code }) => reasonOfCode.get(code) !== "invalid_data") ?? unexpected[0]
  if (first !== undefined)
    throw new MongoServerError({ message: first.errmsg ?? "no reason given", code: first.code })
  if (errors.length === 0) throw error
  return new Set(errors.map(({ index }) => index))
}

/** Closes a client or a cursor. The server may not answer any more. */
const close = (run: () => Promise<void>) =>
  Effect.tryPromise(run).pipe(Effect.interruptible, Effect.timeoutOption(closeDeadline), Effect.ignore)

const connect = ({ url, database }: MongoOptions) =>
  Effect.try({
    try: () => {
      const client = new MongoClient(Redacted.value(url), {
        ...limits,
        appName: "user-embeddings",
        // A secondary of the URL could lack ids that are applied already.
        readPreference: "primary",
        writeConcern: { w: "majority", journal: true },
      })
      // The driver has no public way to set it.
      Object.assign(client.options, { minPoolSizeCheckFrequencyMS: poolCheckMillis })
      return client
    },
    catch: (error) =>
      // Some messages of the driver contain the URL with its password.
      ConfigError.InvalidData(
        ["MONGODB_URL"],
        `MONGODB_URL: ${String(error).replaceAll(Redacted.value(url), "it")}`,
      ),
  }).pipe(
    Effect.map((client) => ({
      client,
      database: client.db(database),
      outage: new ServerOutage(nameOf(client)),
      reachability: new Reachability(() =>
        client.connect().then(() => client.db(database).command({ ping: 1 })),
      ),
    })),
    Effect.acquireRelease(({ client, reachability }) => {
      reachability.close()
      return close(() => client.close())
    }),
  )

export const make = (options: MongoOptions) =>
  Effect.map(connect(options), ({ client, database, outage, reachability }): Context.Tag.Service<Mongo> => {
    const attempt = <A>(
      operation: string,
      target: string,
      run: () => Promise<A>,
      deadline = callDeadline,
    ): Effect.Effect<A, PortFailure> => {
      const label = `${operation} ${target}`
      const toFailure = failed(outage.server, label)
      const answer = within<A, PortFailure>(
        deadline,
        () => toFailure(new Cause.TimeoutException(`no answer in ${Duration.format(deadline)}`)),
        (resume) => {
          if (reachability.failure !== undefined) return resume(Effect.fail(toFailure(reachability.failure)))
          // Returns at once when connected. Without this, the driver never reconnects after a failed first attempt.
          client
            .connect()
            .then(run)
            .then(
              (answer) => resume(Effect.succeed(answer)),
              (cause) => {
                const failure = toFailure(cause)
                if (failure.reason === "unavailable" || failure.reason === "timeout") reachability.doubt()
                resume(Effect.fail(failure))
              },
            )
        },
      )
      return Telemetry.databaseSpan(
        "mongodb",
        operation,
        target,
      )(
        outage.watch(label, answer, ({ cause, reason }) =>
          isOutage(reason) && !lacksFeature(cause) ? `${label}: ${textOf(cause)}` : undefined,
        ),
      )
    }
    return {
      database,
      doubt: () => reachability.doubt(),
      failingWith: (toError) => ({
        call: (...of) => Effect.mapError(attempt(...of), toError),
        stream: (target, open) =>
          Effect.acquireRelease(Effect.sync(open), (cursor) => close(() => cursor.close())).pipe(
            Effect.map((cursor) =>
              Stream.repeatEffectChunkOption(
                attempt("find", target, async () =>
                  (await cursor.hasNext()) ? cursor.readBufferedDocuments() : [],
                ).pipe(
                  Effect.mapError((failure) => Option.some(toError(failure))),
                  Effect.filterOrFail((documents) => documents.length > 0, Option.none),
                  Effect.map(Chunk.unsafeFromArray),
                ),
              ),
            ),
            Stream.unwrapScoped,
          ),
      }),
    }
  })

export const layer = (options: MongoOptions): Layer.Layer<Mongo, ConfigError.ConfigError> =>
  Layer.scoped(Mongo, make(options))

/** From MONGODB_URL and MONGODB_DATABASE. */
export const layerConfig: Layer.Layer<Mongo, ConfigError.ConfigError> = Layer.scoped(
  Mongo,
  Config.all({
    url: Config.mapOrFail(
      Settings.MONGODB_URL,
      Either.fromOption(() => ConfigError.MissingData(["MONGODB_URL"], "MONGODB_URL is not set")),
    ),
    database: Settings.MONGODB_DATABASE,
  }).pipe(Effect.flatMap(make)),
)

/** A vector is stored as a BSON float32 vector or as an array of doubles. */
export type Storage = "vector" | "array"
export type StoredVector = Binary | ReadonlyArray<number | Double>

export const toStored = (vector: Float32Array, storage: Storage): StoredVector =>
  storage === "vector" ? Binary.fromFloat32Array(vector) : Array.from(vector, toDouble)

/** Without this, the driver stores whole numbers as integers. */
export const toDouble = (x: number): Double => new Double(x)

/** `Number(null)` would be 0. */
export const toNumber = (x: unknown): number =>
  typeof x === "number" || x instanceof Double || x instanceof Long || x instanceof Decimal128
    ? Number(x)
    : Number.NaN

/** Of a stored value by any program. What is no vector has no dimensions, and what is no number becomes NaN. */
export const fromStored = (stored: unknown): Float32Array => {
  if (Array.isArray(stored)) return Float32Array.from(stored, toNumber)
  try {
    return stored instanceof Binary ? stored.toFloat32Array() : new Float32Array(0)
  } catch {
    // Binary data of another kind.
    return new Float32Array(0)
  }
}

/**
 * Decodes documents one by one. Another program may have written one that `decode` cannot read: it is left out and
 * counted, and costs the others nothing.
 */
export const decodeEach = <Stored, A>(
  collection: string,
  documents: Iterable<Stored>,
  decode: (document: Stored) => A,
): Array<A> => {
  const decoded: Array<A> = []
  for (const document of documents)
    try {
      decoded.push(decode(document))
    } catch {
      Telemetry.count(Telemetry.unreadableDocuments(collection), 1)
    }
  return decoded
}

const remedies: Record<PortFailure["reason"], string> = {
  unavailable: "start MongoDB, or correct MONGODB_URL",
  timeout: "check the load of MongoDB and the network",
  not_set_up: "run: user-embeddings setup",
  invalid_data: "run: user-embeddings setup",
  conflict: "run the command again",
  rejected: "check the permissions of the user in MONGODB_URL and the log of MongoDB",
}

/** MongoDB and its collections, for readiness, `setup` and `doctor`. */
export const dependency: Effect.Effect<Dependency, ConfigError.ConfigError, Mongo> = Effect.gen(function* () {
  const { database, doubt, failingWith } = yield* Mongo
  const phraseTtlDays = yield* Settings.PHRASE_TTL_DAYS
  const { call } = failingWith(
    ({ reason, operation, cause }) =>
      new DependencyDown({
        dependency: "mongodb",
        detail: `${operation}: ${textOf(cause)}`,
        remedy:
          cause instanceof MongoServerError && cause.code === authenticationFailed
            ? "correct user, password and authSource in MONGODB_URL"
            : remedies[reason],
      }),
  )
  const target = database.databaseName
  const missing = call("listCollections", target, () => missingObjects(database, phraseTtlDays))
  const names = (all: ReadonlyArray<MissingObject>) => all.map(({ name }) => name)
  return {
    name: "mongodb",
    essentialFor: ["worker"],
    ping: call(
      "ping",
      target,
      async () => {
        // A health check notices an outage before a client has to wait for it.
        doubt()
        return String((await database.admin().buildInfo()).version)
      },
      pingDeadline,
    ),
    missing: Effect.map(missing, names),
    inspect: Effect.zipWith(
      call("hello", target, async () => (await database.command({ hello: 1 })).localTime),
      Clock.currentTimeMillis,
      (now, here) => clockFindings(Number(now), here),
    ),
    setup: Effect.gen(function* () {
      const all = yield* missing
      for (const { create, name } of all) yield* call("set up", name, create)
      return names(all)
    }),
  }
})
