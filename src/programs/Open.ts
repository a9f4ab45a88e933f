/**
 * The library for programs without Effect: the same layers with promises.
 *
 *     const shop = await open({ stack: "embedded", DATA_DIR: "./data" })
 *     await shop.record({ user_id: "u-1", event_type: "search", search_phrase: "red wine" })
 *     await shop.drained()
 *     await shop.recommend("u-1")
 *     await shop.close()
 */
import {
  Clock,
  ConfigError,
  ConfigProvider,
  Duration,
  Effect,
  Either,
  Exit,
  Layer,
  ManagedRuntime,
  Schema,
  Scope,
} from "effect"
import * as EmbedderLayer from "../layers/embedder/Embedder.ts"
import { settled } from "../layers/http/HttpClient.ts"
import * as Stack from "../layers/Stack.ts"
import * as Logging from "../layers/telemetry/Logging.ts"
import { productFields } from "../services/api/ProductApi.ts"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import type { EmbeddingChange } from "../services/model/EmbeddingChange.ts"
import * as Interaction from "../services/model/Interaction.ts"
import { type EventType, type MessageId, ProductId, type UserId } from "../services/model/Interaction.ts"
import { FieldIssue, fieldIssue } from "../services/model/Problem.ts"
import type { Attributes } from "../services/model/Product.ts"
import type { UserEmbedding } from "../services/model/UserEmbedding.ts"
import * as Vector from "../services/model/Vector.ts"
import { EmbeddingFeed, FeedIsOff, feedExchange } from "../services/ports/EmbeddingFeed.ts"
import { InteractionLog } from "../services/ports/InteractionLog.ts"
import { InteractionQueue } from "../services/ports/InteractionQueue.ts"
import { PhraseEmbedderError } from "../services/ports/PhraseEmbedder.ts"
import { UserEmbeddings } from "../services/ports/UserEmbeddings.ts"
import * as Catalogue from "../services/recommend/Catalogue.ts"
import * as EmbeddingReads from "../services/recommend/EmbeddingReads.ts"
import * as PairCounter from "../services/recommend/PairCounter.ts"
import * as Popularity from "../services/recommend/Popularity.ts"
import type { Conditions } from "../services/recommend/ProductFilter.ts"
import * as ProductWriter from "../services/recommend/ProductWriter.ts"
import * as Recommender from "../services/recommend/Recommender.ts"
import * as InteractionRecorder from "../services/record/InteractionRecorder.ts"
import * as OutboxRelay from "../services/record/OutboxRelay.ts"
import * as RetractionRequests from "../services/record/RetractionRequests.ts"
import { type BulkItem, ofBulkItem } from "../services/record/Submission.ts"
import type * as Settings from "../services/Settings.ts"
import * as EventVectors from "../services/update/EventVectors.ts"
import { ownerOf } from "../services/update/People.ts"
import * as Provision from "./tasks/ProvisionServers.ts"
import * as Worker from "./Worker.ts"

/** Variables of the environment (`user-embeddings config` lists them). A value given here has precedence. */
export type Variables = {
  readonly [Name in keyof typeof Settings as Name extends Uppercase<Name> ? Name : never]?:
    | string
    | number
    | boolean
    | undefined
}

/** A model that turns texts into vectors. */
export interface Embedder {
  /** Names the model and its version. Vectors of two spaces are never compared. */
  readonly space: string
  /** Vectors of EMBEDDING_DIMENSIONS numbers, in the order of the texts; they need no unit length. */
  readonly embed: (
    texts: ReadonlyArray<string>,
  ) => Promise<ReadonlyArray<ReadonlyArray<number> | Float32Array>>
}

export type Options = Variables & {
  /** `embedded`: SQLite under DATA_DIR. `external`: RABBITMQ_DSN, MYSQL_URL and MONGODB_URL. */
  readonly stack: "embedded" | "external"
  /** Replaces OpenAI or the local model. */
  readonly embedder?: Embedder
  /** Runs a worker in this process; by default only on the embedded stack. */
  readonly worker?: boolean
  /** First creates missing tables, queues and collections; by default only on the embedded stack. */
  readonly setup?: boolean
}

/** An item of `POST /api/interactions`. */
export type NewInteraction = typeof BulkItem.Encoded

export interface Recorded {
  readonly message_id: MessageId
  readonly user_id: UserId
  readonly event_type: EventType
  /** Canonical: UTC with milliseconds. */
  readonly occurred_at: string
  readonly duplicate: boolean
}

/** An absent field leaves the stored one as it is. */
export interface NewProduct {
  readonly product_id: ProductId
  readonly product_name?: string
  readonly category?: string
  /** Is embedded. Without text and vector, a new product is embedded by its name and category. */
  readonly text?: string
  readonly vector?: ReadonlyArray<number> | Float32Array
  /** `false`: the product is not recommended. */
  readonly available?: boolean
  /** Replace all stored attributes. */
  readonly attributes?: Attributes
}

/** An item is invalid; `issues` name its fields. The call recorded and stored nothing. */
export class InvalidInput extends Schema.TaggedError<InvalidInput>()("InvalidInput", {
  index: Schema.Number,
  issues: Schema.Array(FieldIssue),
}) {
  override get message() {
    const words = this.issues.map(({ detail, field }) => (field === "" ? detail : `${field}: ${detail}`))
    return `item ${this.index}: ${words.join("; ")}`
  }
}

/** The idempotency key was used before for another interaction. */
export class KeyReused extends Schema.TaggedError<KeyReused>()("KeyReused", {
  index: Schema.Number,
  message_id: Schema.String,
}) {
  override get message() {
    return `item ${this.index}: its idempotency_key was used before for the interaction ${this.message_id}`
  }
}

/** A merge would contradict earlier ones: it closes a circle, or its `reference` is an alias of somebody else. */
export class MergeRefused extends Schema.TaggedError<MergeRefused>()("MergeRefused", {
  index: Schema.Number,
  detail: Schema.String,
}) {
  override get message() {
    return `item ${this.index}: ${this.detail}`
  }
}

const recommending = Recommender.layer.pipe(
  Layer.provideMerge(Catalogue.layer),
  Layer.provide(Popularity.layer),
)
const steps = Layer.mergeAll(
  InteractionRecorder.layer,
  OutboxRelay.draining,
  recommending,
  PairCounter.counting,
).pipe(Layer.provide(OutboxRelay.layer), Layer.provideMerge(EventVectors.layer))

/** All services that a program may use through {@link Client.run}. */
export type Services =
  | Stack.Ports
  | Catalogue.Catalogue
  | EventVectors.EventVectors
  | InteractionRecorder.InteractionRecorder
  | Recommender.Recommender

export interface Client {
  /** Resolves when the interaction is durable. A worker applies it to the embedding later. */
  readonly record: (interaction: NewInteraction) => Promise<Recorded>
  /** Records all in one commit; the results have the same order. */
  readonly recordAll: (interactions: ReadonlyArray<NewInteraction>) => Promise<ReadonlyArray<Recorded>>
  /** Creates or changes products; the results say in the same order which products are new. */
  readonly putProducts: (products: ReadonlyArray<NewProduct>) => Promise<ReadonlyArray<boolean>>
  /** The products are never recommended again. Their events still count. */
  readonly removeProducts: (products: ReadonlyArray<ProductId>) => Promise<void>
  /** `null`: the user has no embedding yet. */
  readonly embedding: (user: UserId) => Promise<UserEmbedding | null>
  /**
   * The vectors of users, in their order: the stored ones, or the tastes that recommendations use. `null`: the user has
   * none in the configured space.
   */
  readonly vectors: (
    users: ReadonlyArray<UserId>,
    options?: { readonly read?: EmbeddingReads.Read },
  ) => Promise<ReadonlyArray<EmbeddingReads.UserVector | null>>
  /**
   * The changes of user embeddings from the first request for one on, as EMBEDDING_FEED says. With a `name`, from where the last iteration of
   * this name ended, for 7 days; a change counts as received when the loop asks for the next one, so the last changes may
   * come again. Versions of a user never fall: ignore what is not greater. The iteration ends when the client closes, and
   * throws when it loses the broker.
   */
  readonly changes: (options?: { readonly name?: string }) => AsyncGenerator<EmbeddingChange, void>
  /** The mean of all product vectors. A taste is compared with product − mean, scaled to unit length. */
  readonly catalogueMean: () => Promise<Float32Array>
  /** For a user without taste: popular products, with the `source` popular. */
  readonly recommend: (
    user: UserId,
    options?: {
      readonly limit?: number
      readonly exclude?: Recommender.Exclusion
      readonly category?: string | ReadonlyArray<string>
      readonly excludeIds?: ReadonlyArray<ProductId>
      /** Conditions on attributes, such as `{ price: { lte: 50 }, brand: ["Acme", "Apex"] }`. */
      readonly filter?: Conditions
    },
  ) => Promise<Recommender.Recommendations>
  /** Resolves when the outbox, the queue and the retry queues are empty. */
  readonly drained: (timeout?: Duration.DurationInput) => Promise<void>
  /** Runs an Effect program with the services of the client. */
  readonly run: <A, E>(effect: Effect.Effect<A, E, Services>) => Promise<A>
  /** Waits for running work and closes all connections. */
  readonly close: () => Promise<void>
  readonly [Symbol.asyncDispose]: () => Promise<void>
}

const decode = Effect.fnUntraced(function* (interactions: ReadonlyArray<NewInteraction>) {
  const { eventTypes } = yield* EmbeddingConfig
  const now = yield* Clock.currentTimeMillis
  const items = yield* Effect.forEach(interactions, (interaction, index) =>
    Either.mapLeft(
      ofBulkItem(interaction, now, eventTypes),
      (issues) => new InvalidInput({ index, issues: [...issues] }),
    ),
  )
  return yield* Effect.forEach(yield* RetractionRequests.resolve(items), (item, index) =>
    Either.mapLeft(item, ({ detail, field }) => new InvalidInput({ index, issues: [{ field, detail }] })),
  )
})

const recordAll = Effect.fn("recordAll")(function* (interactions: ReadonlyArray<NewInteraction>) {
  const recorder = yield* InteractionRecorder.InteractionRecorder
  const appended = yield* recorder.record(yield* decode(interactions))
  return yield* Effect.forEach(appended, (one, index): Effect.Effect<Recorded, KeyReused | MergeRefused> => {
    const { event_type, message_id, occurred_at, user_id } = one.interaction
    if (one._tag === "KeyReused") return new KeyReused({ index, message_id })
    if (one._tag === "Refused") return new MergeRefused({ index, detail: one.detail })
    const duplicate = one._tag === "Duplicate"
    return Effect.succeed({ message_id, user_id, event_type, occurred_at, duplicate })
  })
})

const decodeProduct = Schema.decodeUnknownEither(
  Schema.Struct({ product_id: Schema.typeSchema(ProductId), ...productFields }),
  { errors: "all" },
)

const putProducts = Effect.fn("putProducts")(function* (products: ReadonlyArray<NewProduct>) {
  const { dimensions } = yield* EmbeddingConfig
  const invalid = (index: number, ...issues: ReadonlyArray<FieldIssue>) => new InvalidInput({ index, issues })
  for (const [index, { text, vector, ...product }] of products.entries()) {
    const decoded = decodeProduct({ ...product, ...(text === undefined ? {} : { text }) })
    if (Either.isLeft(decoded))
      return yield* invalid(index, ...Interaction.issues(decoded.left).map(fieldIssue))
    if (text !== undefined && vector !== undefined)
      return yield* invalid(index, { field: "", detail: "give either vector or text" })
    const detail = vector && Vector.problem(vector, dimensions)
    if (detail !== undefined) return yield* invalid(index, { field: "vector", detail })
  }
  const written = yield* ProductWriter.writeOnce(products)
  yield* (yield* Catalogue.Catalogue).invalidate
  const created: Array<boolean> = []
  for (const [index, result] of written.entries()) {
    if (Either.isRight(result)) created.push(result.right === "created")
    else return yield* "field" in result.left ? invalid(index, result.left) : result.left
  }
  return created
})

const removeProducts = Effect.fn("removeProducts")(function* (products: ReadonlyArray<ProductId>) {
  yield* ProductWriter.removeProducts(products)
  yield* (yield* Catalogue.Catalogue).invalidate
})

const waiting = Effect.gen(function* () {
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const { unpublished } = yield* log.backlog
  const { main, retry } = yield* queue.depths
  return Object.values(retry).reduce((sum, depth) => sum + depth, unpublished + main.ready + main.unacked)
})

/** Requires two empty readings, because a row between the outbox and the queue is in neither for a moment. */
const drained = Effect.gen(function* () {
  let emptyReadings = 0
  while (emptyReadings < 2) {
    emptyReadings = (yield* waiting) === 0 ? emptyReadings + 1 : 0
    yield* Effect.sleep("20 millis")
  }
})

/** A rejection is retried by the retry queues. An unusable vector makes the message a dead letter. */
const ownEmbedder = ({ embed, space }: Embedder) =>
  Layer.unwrapEffect(
    Effect.map(EmbeddingConfig, ({ dimensions }) =>
      EmbedderLayer.of({
        space,
        embed: (texts) =>
          Effect.tryPromise({
            try: () => embed(texts),
            catch: (cause) =>
              new PhraseEmbedderError({ reason: "server_error", detail: "the embedder failed", cause }),
          }).pipe(
            Effect.map((vectors) =>
              texts.map((_, index) => {
                const vector = vectors[index]
                const detail = vector ? Vector.problem(vector, dimensions) : "is missing"
                return vector === undefined || detail !== undefined
                  ? Either.left(
                      new PhraseEmbedderError({ reason: "bad_vector", detail: `the vector ${detail}` }),
                    )
                  : Either.right(Vector.normalise(Float32Array.from(vector)))
              }),
            ),
            Effect.catchAll((error) => Effect.succeed(texts.map(() => Either.left(error)))),
          ),
      }),
    ),
  )

const environment = (options: Options) => {
  const { embedder: _, setup: __, stack, worker: ___, ...variables } = options
  const servers = stack === "embedded" ? { RABBITMQ_DSN: "", MYSQL_URL: "", MONGODB_URL: "" } : {}
  const given = Object.entries({ ...variables, ...servers }).flatMap(([name, value]) =>
    // An option replaces a file that the environment names.
    value === undefined ? [] : [[name, String(value)] as const, [`${name}_FILE`, ""] as const],
  )
  return Layer.setConfigProvider(
    ConfigProvider.fromMap(new Map(given)).pipe(
      ConfigProvider.orElse(ConfigProvider.fromEnv),
      // A library logs only warnings by default.
      ConfigProvider.orElse(() => ConfigProvider.fromMap(new Map([["LOG_LEVEL", "warn"]]))),
    ),
  )
}

/** Without servers the configuration means the embedded stack, which the caller may not want. */
const asAsked = ({ stack }: Options) =>
  Effect.filterOrFail(
    Stack.kind,
    (kind) => kind === stack,
    () =>
      stack === "external"
        ? ConfigError.MissingData(
            ["RABBITMQ_DSN"],
            'stack "external" needs RABBITMQ_DSN, MYSQL_URL and MONGODB_URL',
          )
        : ConfigError.InvalidData(["stack"], `stack "${stack}" must be "embedded" or "external"`),
  )

/** All services for a program with Effect. */
export const layer = (options: Options) => {
  const { setup = options.stack === "embedded", worker = options.stack === "embedded" } = options
  const ports = options.embedder === undefined ? Stack.layer : Stack.on(ownEmbedder(options.embedder))
  const programs = worker ? Layer.merge(steps, Worker.layer) : steps
  return Layer.unwrapEffect(Effect.as(asAsked(options), programs)).pipe(
    Layer.provideMerge(
      setup ? Layer.tap(ports, (context) => Effect.provide(Provision.setup, context)) : ports,
    ),
    Layer.provide(Logging.layerConfig(false)),
    Layer.provide(environment(options)),
  )
}

/** Changes received together. They are acknowledged together, too. */
const changesAtOnce = 100

/** A generator by hand: a stream would acknowledge the last change before the loop has handled it. */
const follow = (run: Client["run"], isClosed: () => boolean) =>
  async function* ({ name }: { readonly name?: string } = {}): AsyncGenerator<EmbeddingChange, void> {
    const scope = await run(Scope.make())
    try {
      const subscribe = Effect.filterOrFail(
        EmbeddingFeed,
        ({ mode }) => mode !== "off",
        () => new FeedIsOff(),
      )
      const subscription = await run(
        Effect.flatMap(subscribe, (feed) => feed.subscribe(name && `${feedExchange}.changes.${name}`)).pipe(
          Scope.extend(scope),
        ),
      )
      while (true) {
        yield* await run(subscription.take(changesAtOnce))
        await run(subscription.acknowledge)
      }
    } catch (error) {
      if (!isClosed()) throw error
    } finally {
      await Effect.runPromise(Scope.close(scope, Exit.void))
    }
  }

/** Opens the system in this process. The promises reject with errors that have a `_tag`. */
export const open = async (options: Options): Promise<Client> => {
  const runtime = ManagedRuntime.make(layer(options))
  let isClosed = false
  const run: Client["run"] = (effect) =>
    isClosed ? Promise.reject(new Closed()) : settled(runtime.runPromiseExit(effect))
  try {
    await run(Effect.void)
  } catch (cause) {
    await runtime.dispose()
    throw ConfigError.isConfigError(cause) ? new BadConfiguration({ message: cause.message }) : cause
  }
  const close = () => {
    isClosed = true
    return runtime.dispose()
  }
  return {
    record: (interaction) => run(Effect.map(recordAll([interaction]), ([recorded]) => recorded!)),
    recordAll: (interactions) => run(recordAll(interactions)),
    putProducts: (products) => run(putProducts(products)),
    removeProducts: (products) => run(removeProducts(products)),
    embedding: (user) =>
      run(
        Effect.flatMap(UserEmbeddings, (users) =>
          Effect.map(ownerOf(users, user), ({ record }) => record?.embedding ?? null),
        ),
      ),
    vectors: (users, { read = "stored" } = {}) => run(EmbeddingReads.readVectors(users, read)),
    changes: follow(run, () => isClosed),
    catalogueMean: () =>
      run(Effect.flatMap(Catalogue.Catalogue, ({ mean }) => Effect.map(mean, (shared) => shared.slice()))),
    recommend: (user, { category, exclude = "purchased", excludeIds, filter, limit = 10 } = {}) =>
      run(
        Effect.flatMap(Recommender.Recommender, (recommender) =>
          recommender.recommend(user, {
            limit,
            exclude,
            excludeIds,
            filter: {
              categories: category === undefined ? undefined : [category].flat(),
              conditions: filter,
            },
            fallback: "popular",
          }),
        ),
      ),
    drained: (timeout = Duration.seconds(30)) =>
      run(Effect.timeoutFail(drained, { duration: timeout, onTimeout: () => new StillWaiting() })),
    run,
    close,
    [Symbol.asyncDispose]: close,
  }
}

/** An option or a variable has a value that cannot be used. */
export class BadConfiguration extends Schema.TaggedError<BadConfiguration>()("BadConfiguration", {
  message: Schema.String,
}) {}

/** The client was used after `close`. */
export class Closed extends Schema.TaggedError<Closed>()("Closed", {}) {
  override get message() {
    return "the client is closed"
  }
}

/** Interactions still waited at the timeout: no worker runs, or a dependency is unavailable. */
export class StillWaiting extends Schema.TaggedError<StillWaiting>()("StillWaiting", {}) {
  override get message() {
    return "interactions still wait: check that a worker runs, and run `user-embeddings doctor`"
  }
}
