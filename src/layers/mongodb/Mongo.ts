/**
 * The MongoDB client behind the stores of embeddings. It connects with the first call and again by itself: the layer
 * never fails because the server is down, calls do, within seconds. Writes are journaled on a majority before they
 * are answered.
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
} from "effect"
import {
  Binary,
  type Db,
  Double,
  type FindCursor,
  MongoBulkWriteError,
  MongoClient,
  type MongoClientOptions,
  MongoError,
  MongoNetworkError,
  MongoNetworkTimeoutError,
  MongoNotConnectedError,
  MongoOperationTimeoutError,
  MongoServerError,
  MongoServerSelectionError,
  MongoTopologyClosedError,
} from "mongodb"
import { clockFindings, type Dependency, DependencyDown } from "../../services/ports/Dependencies.ts"
import * as Settings from "../../services/Settings.ts"
import { databaseSpan } from "../../services/Telemetry.ts"
import { within } from "../Deadline.ts"
import { type MissingObject, missingObjects } from "./MongoCollections.ts"

export interface MongoOptions {
  readonly url: Redacted.Redacted
  readonly database: string
}

/** What a call failed with: the fields of the ports' errors. */
export interface Failure {
  readonly reason: "unavailable" | "timeout" | "rejected"
  readonly operation: string
  readonly cause: unknown
}

/** Calls to MongoDB that fail in the words of one port. */
export interface Calls<E> {
  /** One call with a deadline; its span and its failure are named `{operation} {target}`, as `find user_embeddings`. */
  readonly call: <A>(
    operation: string,
    target: string,
    run: () => Promise<A>,
    within?: Duration.Duration,
  ) => Effect.Effect<A, E>
  /** All documents of a cursor, one chunk for each batch of the server. */
  readonly stream: <A>(target: string, open: () => FindCursor<A>) => Stream.Stream<A, E>
}

export class Mongo extends Context.Tag("user-embeddings/Mongo")<
  Mongo,
  {
    readonly database: Db
    /** Calls whose failures become the error of a port. */
    readonly failingWith: <E>(error: (failure: Failure) => E) => Calls<E>
  }
>() {}

/** `timeoutMS` of driver 7.9 has no effect, so each phase of a call has its own limit, and the whole another. */
const limits = {
  serverSelectionTimeoutMS: 5000,
  waitQueueTimeoutMS: 5000,
  connectTimeoutMS: 5000,
  socketTimeoutMS: 10_000,
} satisfies MongoClientOptions
const callDeadline = Duration.seconds(15)
const pingDeadline = Duration.seconds(6)
const closing = Duration.seconds(3)

export const duplicateKey = 11000
const authenticationFailed = 18
/** The server steps down, shuts down or is no primary: another one, or the same one later, will answer. */
const goingAway = new Set<unknown>([91, 189, 10107, 11600, 11602, 13435, 13436])
/** MaxTimeMSExpired, WriteConcernFailed, WriteConcernTimeout, ExceededTimeLimit. */
const tooLate = new Set<unknown>([50, 64, 202, 262])

/** Bulk writes wrap what the driver failed with; the wrapped error says what happened. */
const innermost = (error: unknown): unknown =>
  error instanceof MongoBulkWriteError && error.errorResponse instanceof Error ? error.errorResponse : error

const reasonOf = (error: unknown): Failure["reason"] => {
  if (error instanceof MongoServerError)
    return goingAway.has(error.code) ? "unavailable" : tooLate.has(error.code) ? "timeout" : "rejected"
  if (
    error instanceof MongoNetworkTimeoutError ||
    error instanceof MongoOperationTimeoutError ||
    Cause.isTimeoutException(error) ||
    (error instanceof MongoError && error.name === "MongoWaitQueueTimeoutError")
  )
    return "timeout"
  return error instanceof MongoServerSelectionError ||
    error instanceof MongoNetworkError ||
    error instanceof MongoTopologyClosedError ||
    error instanceof MongoNotConnectedError
    ? "unavailable"
    : "rejected"
}

/** A failed call as {@link Failure}. */
const failure =
  (operation: string) =>
  (error: unknown): Failure => {
    const cause = innermost(error)
    return { reason: reasonOf(cause), operation, cause }
  }

/** Another writer was faster to insert the same key. */
export const isDuplicateKey = (error: unknown): boolean =>
  error instanceof MongoServerError && error.code === duplicateKey

/**
 * Which operations of an unordered bulk write, by index, the server refused for an expected reason. Any other failure
 * is thrown again: then it is open what was written.
 */
export const refusals = (error: unknown, expected: ReadonlyArray<number>): ReadonlySet<number> => {
  if (!(error instanceof MongoBulkWriteError) || error.result.getWriteConcernError() !== undefined)
    throw error
  const errors = [error.writeErrors].flat()
  if (errors.length === 0 || errors.some(({ code }) => !expected.includes(code))) throw error
  return new Set(errors.map(({ index }) => index))
}

/** Says goodbye to the server, which may not answer any more. */
const released = (close: () => Promise<void>) =>
  Effect.tryPromise(close).pipe(Effect.interruptible, Effect.timeoutOption(closing), Effect.ignore)

const connect = ({ url, database }: MongoOptions) =>
  Effect.try({
    try: () =>
      new MongoClient(Redacted.value(url), {
        ...limits,
        appName: "user-embeddings",
        writeConcern: { w: "majority", journal: true },
      }),
    catch: (error) =>
      // The driver quotes the whole URL in some of its messages.
      ConfigError.InvalidData(
        ["MONGODB_URL"],
        `MONGODB_URL: ${String(error).replaceAll(Redacted.value(url), "it")}`,
      ),
  }).pipe(
    Effect.acquireRelease((client) => released(() => client.close())),
    Effect.map((client) => ({ client, database: client.db(database) })),
  )

export const make = (options: MongoOptions) =>
  Effect.map(connect(options), ({ client, database }): Context.Tag.Service<Mongo> => {
    const attempt = <A>(
      operation: string,
      target: string,
      run: () => Promise<A>,
      deadline = callDeadline,
    ): Effect.Effect<A, Failure> => {
      const failed = failure(`${operation} ${target}`)
      return within<A, Failure>(
        deadline,
        () => failed(new Cause.TimeoutException(`no answer in ${Duration.format(deadline)}`)),
        (resume) => {
          // Returns at once when connected. Left to itself the driver never tries again after a first failure.
          client
            .connect()
            .then(run)
            .then(
              (answer) => resume(Effect.succeed(answer)),
              (cause) => resume(Effect.fail(failed(cause))),
            )
        },
      ).pipe(databaseSpan("mongodb", operation, target))
    }
    return {
      database,
      failingWith: (error) => ({
        call: (...of) => Effect.mapError(attempt(...of), error),
        stream: (target, open) =>
          Effect.acquireRelease(Effect.sync(open), (cursor) => released(() => cursor.close())).pipe(
            Effect.map((cursor) =>
              Stream.repeatEffectChunkOption(
                attempt("find", target, async () =>
                  (await cursor.hasNext()) ? cursor.readBufferedDocuments() : [],
                ).pipe(
                  Effect.mapError((failed) => Option.some(error(failed))),
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

/** How vectors are stored: as BSON float32 vector, or as array of doubles. */
export type Storage = "vector" | "array"
export type StoredVector = Binary | ReadonlyArray<number | Double>

export const toStored = (vector: Float32Array, storage: Storage): StoredVector =>
  storage === "vector" ? Binary.fromFloat32Array(vector) : Array.from(vector, toDouble)

/** A number that the driver would otherwise store as an integer. */
export const toDouble = (x: number): Double => new Double(x)

/** The vector of either way of storage. */
export const fromStored = (stored: StoredVector): Float32Array =>
  stored instanceof Binary ? stored.toFloat32Array() : Float32Array.from(stored, Number)

const remedies: Record<Failure["reason"], string> = {
  unavailable: "start MongoDB, or correct MONGODB_URL",
  timeout: "look at MongoDB's load and at the network in between",
  rejected: "look at the rights of MONGODB_URL's user and at MongoDB's log",
}

/** MongoDB with its collections, for readiness, `setup` and `doctor`. */
export const dependency: Effect.Effect<Dependency, ConfigError.ConfigError, Mongo> = Effect.gen(function* () {
  const { database, failingWith } = yield* Mongo
  const phraseTtlDays = yield* Settings.PHRASE_TTL_DAYS
  const { call } = failingWith(
    ({ reason, operation, cause }) =>
      new DependencyDown({
        dependency: "mongodb",
        detail: `${operation}: ${cause instanceof Error ? cause.message : String(cause)}`,
        remedy:
          cause instanceof MongoServerError && cause.code === authenticationFailed
            ? "correct user, password and authSource in MONGODB_URL"
            : remedies[reason],
      }),
  )
  const target = database.databaseName
  const found = call("listCollections", target, () => missingObjects(database, phraseTtlDays))
  const inWords = (all: ReadonlyArray<MissingObject>) => all.map(({ what }) => what)
  return {
    name: "mongodb",
    essentialFor: ["worker"],
    ping: call(
      "ping",
      target,
      async () => {
        await database.command({ ping: 1 })
        return String((await database.admin().buildInfo()).version)
      },
      pingDeadline,
    ),
    missing: Effect.map(found, inWords),
    inspect: Effect.zipWith(
      call("hello", target, async () => (await database.command({ hello: 1 })).localTime),
      Clock.currentTimeMillis,
      (now, here) => clockFindings(Number(now), here),
    ),
    setup: Effect.gen(function* () {
      const missing = yield* found
      for (const { what, create } of missing) yield* call("set up", what, create)
      return inWords(missing)
    }),
  }
})
