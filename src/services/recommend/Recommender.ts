/** Step: taste → products. docs/concepts.md explains the figures and their arithmetic. */
import { Array as Arr, Clock, Context, Duration, Effect, Either, Layer, Option, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import { decay, weightOf } from "../model/Fold.ts"
import type { ProductId, UserId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Taste from "../model/Taste.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"
import { InteractionLog, type InteractionLogError } from "../ports/InteractionLog.ts"
import type { PhraseEmbedderError } from "../ports/PhraseEmbedder.ts"
import { ProductPairs } from "../ports/ProductPairs.ts"
import { UserEmbeddings, type UserEmbeddingsError } from "../ports/UserEmbeddings.ts"
import { EventVectors } from "../update/EventVectors.ts"
import { ownerOf } from "../update/People.ts"
import { Catalogue, type CatalogueError } from "./Catalogue.ts"
import type { Bonus, Scored } from "./CatalogueSearch.ts"
import { readTastes } from "./EmbeddingReads.ts"
import { type Counts, Popularity } from "./Popularity.ts"
import * as PopularProducts from "./PopularProducts.ts"
import type { ProductFilter } from "./ProductFilter.ts"
import { purchasesOf } from "./Purchases.ts"
import * as Together from "./Together.ts"
import { insertTopK, moreSimilar } from "./TopK.ts"
import { warmUp } from "./WarmUp.ts"

/** Products left out of the recommendations: those the user bought, those the user interacted with, or none. */
export const Exclusion = Schema.Literal("purchased", "seen", "none")
export type Exclusion = typeof Exclusion.Type

/** The user has no embedding in the space of the catalogue, or one without a direction. */
export class NoTaste extends Schema.TaggedError<NoTaste>()("NoTaste", {
  user_id: Schema.String,
  detail: Schema.String,
}) {
  override get message() {
    return this.detail
  }
}

export class ProductNotFound extends Schema.TaggedError<ProductNotFound>()("ProductNotFound", {
  product_id: Schema.String,
}) {
  override get message() {
    return `product ${this.product_id} has no embedding in the space of the catalogue`
  }
}

/** A filter names attributes that no product has. */
export class UnknownAttributes extends Schema.TaggedError<UnknownAttributes>()("UnknownAttributes", {
  attributes: Schema.Array(Schema.String),
}) {
  override get message() {
    return `no product has the attribute ${this.attributes.join(", ")}`
  }
}

/** Similar users are found by comparing with every user, which takes too long for this many. */
export class TooManyUsers extends Schema.TaggedError<TooManyUsers>()("TooManyUsers", {
  users: Schema.Number,
  most: Schema.Number,
}) {
  override get message() {
    return `there are ${this.users} users; similar users can be found among at most ${this.most}`
  }
}

const named = {
  product_id: Schema.String,
  product_name: Schema.NullOr(Schema.String),
  category: Schema.NullOr(Schema.String),
}

/** A recommended product, without the reasons. */
export const RecommendedProduct = Schema.Struct({
  ...named,
  score: Schema.Number.annotations({ description: "similarity + popularity + together + again" }),
  similarity: Schema.Number.annotations({ description: "cosine of taste and product, both centred" }),
  popularity: Schema.Number.annotations({
    description: "POPULARITY_WEIGHT · log(1 + n) / log(1 + greatest n); n = interactions with the product",
  }),
  together: Schema.Number.annotations({
    description:
      "0 to TOGETHER_WEIGHT: how much people interact with it together with the user's newest products",
  }),
  again: Schema.Number.annotations({
    description: "0 to AGAIN_WEIGHT: how often and recently the user bought it; 0 unless exclude=none",
  }),
})
export interface Recommendation extends Schema.Schema.Type<typeof RecommendedProduct> {
  /** At most the newest 10 events, largest absolute share first; with `rest` the absolute values add up to 1. */
  readonly because: ReadonlyArray<Taste.Reason>
  readonly rest: number
}

export interface Recommendations {
  /** `popular`: the user has no taste yet. */
  readonly source: "taste" | "popular"
  readonly items: ReadonlyArray<Recommendation>
}

export const BoughtBefore = Schema.Struct({
  ...named,
  score: Schema.Number.annotations({ description: "sum of exp(−λ · days since) over the purchases" }),
  purchases: Schema.Number,
  /** Canonical timestamp. */
  last_purchased_at: Schema.String,
})
export type BoughtBefore = typeof BoughtBefore.Type

export const SimilarProduct = Schema.Struct({
  ...named,
  score: Schema.Number.annotations({ description: "similarity + together" }),
  similarity: Schema.Number.annotations({ description: "cosine of the two products, both centred" }),
  together: Schema.Number.annotations({
    description: "0 to TOGETHER_WEIGHT: how much people interact with the two together",
  }),
})
export const SimilarUser = Schema.Struct({ user_id: Schema.String, similarity: Schema.Number })

/** A product found by a phrase. */
export const Found = Schema.Struct({
  ...named,
  score: Schema.Number.annotations({ description: "similarity + 0.3 · taste" }),
  similarity: Schema.Number.annotations({ description: "cosine of phrase and product, both centred" }),
  /** `null` without a user or without taste. */
  taste: Schema.NullOr(Schema.Number).annotations({ description: "cosine of the user's taste and product" }),
})
export type Found = typeof Found.Type

export const tasteWeight = 0.3
/** The most users compared, at about 20 µs each. */
export const mostUsersCompared = 50_000
/** For the counts of a log that is counted for the first time. */
const countsTimeout = Duration.seconds(1)

type StoreError = CatalogueError | InteractionLogError | UserEmbeddingsError

/** The products that an answer may have, beside those that are not available. */
export interface Wanted {
  readonly limit: number
  readonly filter?: ProductFilter | undefined
  /** Left out for this request alone. */
  readonly excludeIds?: ReadonlyArray<ProductId> | undefined
}

export class Recommender extends Context.Tag("user-embeddings/Recommender")<
  Recommender,
  {
    /** Products for a user, greatest score first, ties by product id. */
    readonly recommend: (
      user: UserId,
      options: Wanted & {
        readonly exclude: Exclusion
        /** For a user without taste: popular products, or the failure {@link NoTaste}. */
        readonly fallback: "popular" | "none"
      },
    ) => Effect.Effect<Recommendations, StoreError | NoTaste | UnknownAttributes>
    /** Available products of the catalogue that the user bought; frequent and recent purchases come first. */
    readonly buyAgain: (user: UserId, limit: number) => Effect.Effect<ReadonlyArray<BoughtBefore>, StoreError>
    /** Products similar to one, by the cosine of the centred vectors and by who interacts with both. */
    readonly similarProducts: (
      product: ProductId,
      options: Pick<Wanted, "limit" | "filter">,
    ) => Effect.Effect<ReadonlyArray<typeof SimilarProduct.Type>, StoreError | ProductNotFound>
    /** Products near a phrase; with a user, also near the user's taste. Records nothing. */
    readonly search: (
      phrase: string,
      options: Wanted & {
        readonly user?: UserId | undefined
        /** Of the user. */
        readonly exclude: Exclusion
      },
    ) => Effect.Effect<
      { readonly personalised: boolean; readonly items: ReadonlyArray<Found> },
      StoreError | PhraseEmbedderError | UnknownAttributes
    >
    /** Users similar to one, by the cosine of their long memories. */
    readonly similarUsers: (
      user: UserId,
      limit: number,
    ) => Effect.Effect<
      { readonly compared: number; readonly users: ReadonlyArray<typeof SimilarUser.Type> },
      StoreError | NoTaste | TooManyUsers
    >
  }
>() {}

const services = Effect.all({
  catalogue: Catalogue,
  config: EmbeddingConfig,
  log: InteractionLog,
  pairs: ProductPairs,
  popularity: Popularity,
  popularProducts: PopularProducts.make,
  users: UserEmbeddings,
  vectors: EventVectors,
})
type Services = Effect.Effect.Success<typeof services>

const noDirection = (user_id: UserId) =>
  new NoTaste({ user_id, detail: `the taste of user ${user_id} has no direction` })

const loadEmbedding = Effect.fnUntraced(function* ({ catalogue, users }: Services, user_id: UserId) {
  const { record } = yield* Effect.catchIf(
    ownerOf(users, user_id),
    ({ reason }) => reason === "invalid_data",
    ({ message }) => new NoTaste({ user_id, detail: message }),
  )
  const embedding = record?.embedding
  if (embedding === undefined)
    return yield* new NoTaste({ user_id, detail: `user ${user_id} has no embedding` })
  if (embedding.space !== catalogue.space)
    return yield* new NoTaste({
      user_id,
      detail: `the embedding of user ${user_id} is in space ${embedding.space}, not ${catalogue.space}: rebuild it`,
    })
  return embedding
})

/** A sum of weights that cancel out is not exactly 0. */
const roundingError = 1e-9

/** Which of these products are left out: bought or seen ones, and those that the user's own events speak against. */
const excludedOf = Effect.fnUntraced(function* (
  { config, log }: Services,
  user: UserId,
  exclusion: Exclusion,
  among: ReadonlyArray<ProductId>,
) {
  const without = new Set<ProductId>()
  const { weights } = config.eventTypes
  const hasNegative = Object.values(weights).some((weight) => weight < 0)
  const types = exclusion === "seen" || hasNegative ? undefined : ["product_purchase"]
  const sums = new Map<ProductId, number>()
  for (const { event_type, events, product_id } of yield* log.productEvents(user, { among, types })) {
    if (exclusion === "seen" || event_type === "product_purchase") without.add(product_id)
    sums.set(product_id, (sums.get(product_id) ?? 0) + events * weightOf(weights, event_type))
  }
  for (const [product_id, sum] of sums) if (sum < -roundingError) without.add(product_id)
  return without
})

/** So many more products than wanted are ranked at first. */
const sparePlaces = 90

/**
 * The first products of a ranking without those that are left out. A user may have events on 100,000 products, so the log
 * is asked about the first places alone, and about more only if too few of them remain.
 */
const firstOf = Effect.fnUntraced(function* <A extends { readonly product_id: ProductId }, E, R>(
  services: Services,
  user: UserId | undefined,
  {
    exclude,
    excludeIds = [],
    limit,
  }: Pick<Parameters<Recommender["Type"]["recommend"]>[1], "exclude" | "excludeIds" | "limit">,
  rank: (options: {
    readonly limit: number
    readonly without: ReadonlySet<ProductId>
  }) => Effect.Effect<ReadonlyArray<A>, E, R>,
) {
  const without = new Set(excludeIds)
  if (user === undefined || exclude === "none") return yield* rank({ limit, without })
  for (let places = limit + sparePlaces; ; places *= 4) {
    const ranked = yield* rank({ limit: places, without })
    const ids = ranked.map(({ product_id }) => product_id)
    const excluded = yield* excludedOf(services, user, exclude, ids)
    const left = ranked.filter(({ product_id }) => !excluded.has(product_id))
    if (left.length >= limit || ranked.length < places) return left.slice(0, limit)
    for (const id of excluded) without.add(id)
  }
})

const readTaste = Effect.fn("taste.read")(function* (services: Services, user_id: UserId) {
  const embedding = yield* loadEmbedding(services, user_id)
  const [read] = yield* readTastes(services, [embedding])
  return read?.taste === undefined ? yield* noDirection(user_id) : { ...read.taste, recent: embedding.recent }
})

const requireKnownAttributes = Effect.fnUntraced(function* (
  { catalogue }: Services,
  { conditions }: ProductFilter,
) {
  if (conditions === undefined) return
  const attributes = yield* catalogue.unknownAttributes(Object.keys(conditions))
  if (attributes.length > 0) return yield* new UnknownAttributes({ attributes })
})

const withoutReasons = ([{ category, product_id, product_name }, popularity]: readonly [Product, number]) => {
  const parts = { score: popularity, similarity: 0, popularity, together: 0, again: 0 }
  return { product_id, product_name, category, ...parts, because: [], rest: 0 }
}

/** A search finds the product of two directions, which is a cosine but for rounding. */
const withCosine = (found: Scored): Scored => {
  const similarity = Vector.clampCosine(found.similarity)
  return { ...found, similarity, score: found.score + (similarity - found.similarity) }
}

const bonusBy = (counts: Counts, weight: number): Bonus => ({
  of: (id) => Taste.popularityPart(weight, counts.of(id), counts.most),
})

const recommend = Effect.fn("recommend")(function* (
  services: Services,
  ...[user, { fallback, filter = {}, ...wanted }]: Parameters<Recommender["Type"]["recommend"]>
) {
  const { catalogue, config, popularity } = services
  yield* requireKnownAttributes(services, filter)
  const taste = yield* Effect.either(readTaste(services, user))
  if (Either.isLeft(taste)) {
    if (taste.left._tag !== "NoTaste" || fallback === "none") return yield* taste.left
    const items = yield* firstOf(services, user, wanted, (places) =>
      Effect.map(services.popularProducts({ ...places, filter }), Arr.map(withoutReasons)),
    )
    return { source: "popular" as const, items }
  }
  // Right after a start the log may still be counted. The taste alone is a better answer than none.
  const counts = Option.getOrUndefined(yield* Effect.timeoutOption(popularity.counts, countsTimeout))
  const bonus = counts && bonusBy(counts, config.popularityWeight)
  const { direction, recent } = taste.right
  const terms = [
    yield* Together.together(
      catalogue,
      services.pairs,
      config.togetherWeight,
      recent,
      counts?.of ?? (() => 0),
    ),
    wanted.exclude === "none" ? yield* again(services, user) : Together.noTerm,
  ] as const
  const extra = Together.sumOf(terms)
  const found = yield* firstOf(services, user, wanted, (places) =>
    catalogue.search(direction, { ...places, filter, bonus, extra }),
  )
  return {
    source: "taste" as const,
    items: found.map(withCosine).map(({ bonus, centred, similarity, ...product }) => {
      const { product_id } = product
      const [together, again] = terms.map(({ of }) => of.get(product_id) ?? 0) as [number, number]
      const reasons = Taste.explain(taste.right, centred(), similarity, {
        total: together + again,
        of: (event) => terms.reduce((sum, term) => sum + term.fromEvent(event, product_id), 0),
      })
      return { ...product, similarity, popularity: bonus, together, again, ...reasons }
    }),
  }
})

/** `again`: the decayed number of the user's purchases of a product. */
const again = Effect.fnUntraced(function* (services: Services, user: UserId) {
  const { againWeight, lambda } = services.config
  if (againWeight === 0) return Together.noTerm
  const now = yield* Clock.currentTimeMillis
  const bought = yield* purchasesOf(services.log, user, lambda, now)
  const scores = new Map(Array.from(bought, ([product, { score }]) => [product, score]))
  return Together.scaled(scores, againWeight, ({ event_type, occurred_at, product_id }, product) =>
    event_type === "product_purchase" && product_id === product
      ? decay(lambda, now, Date.parse(occurred_at))
      : 0,
  )
})

const buyAgain = Effect.fn("buyAgain")(function* (services: Services, user: UserId, limit: number) {
  const { catalogue, config, log } = services
  const bought = yield* purchasesOf(log, user, config.lambda, yield* Clock.currentTimeMillis)
  const ranked = [...bought].sort(([a, x], [b, y]) => y.score - x.score || (a < b ? -1 : 1))
  const known = yield* catalogue.describe([...bought.keys()])
  return ranked
    .flatMap(([id, { last, purchases, score }]) => {
      const { available = false, category = null, product_name = null } = known.get(id) ?? {}
      const last_purchased_at = new Date(last).toISOString()
      return available
        ? [{ product_id: id, product_name, category, score, purchases, last_purchased_at }]
        : []
    })
    .slice(0, limit)
})

const similarProducts = Effect.fn("similarProducts")(function* (
  { catalogue, config, pairs }: Services,
  ...[product_id, options]: Parameters<Recommender["Type"]["similarProducts"]>
) {
  const direction = yield* catalogue.centred(product_id)
  if (direction === undefined) return yield* new ProductNotFound({ product_id })
  const term = yield* Together.withProduct(catalogue, pairs, config.togetherWeight, product_id)
  const found = yield* catalogue.search(direction, {
    ...options,
    without: new Set([product_id]),
    extra: term.of,
  })
  return found.map(withCosine).map(({ bonus: _, centred: __, ...product }) => ({
    ...product,
    together: term.of.get(product.product_id) ?? 0,
  }))
})

const search = Effect.fn("search")(function* (
  services: Services,
  ...[phrase, { filter = {}, user, ...wanted }]: Parameters<Recommender["Type"]["search"]>
) {
  const { catalogue, vectors } = services
  yield* requireKnownAttributes(services, filter)
  const [[found], taste] = yield* Effect.all(
    [
      vectors.resolve([{ message_id: "", search_phrase: phrase, product_id: null }]),
      user === undefined
        ? Effect.succeedNone
        : Effect.catchTag(Effect.asSome(readTaste(services, user)), "NoTaste", () => Effect.succeedNone),
    ],
    { concurrency: 2 },
  )
  const vector = yield* Effect.catchTags(found!, { ProductMissing: Effect.die, UnusableVector: Effect.die })
  const centred = Taste.centre(vector, yield* catalogue.mean) ?? new Float32Array(vector.length)
  // The sum of two dot products is the dot product with the sum of the directions, so one search finds the best.
  const direction = Option.match(taste, {
    onNone: () => centred,
    onSome: (taste) => {
      const sum = Float64Array.from(centred)
      Vector.addScaled(sum, tasteWeight, taste.direction)
      return Vector.divide(sum, 1)
    },
  })
  const products = yield* firstOf(services, user, wanted, (places) =>
    catalogue.search(direction, { ...places, filter }),
  )
  const items = products.map(({ category, centred: vector, product_id, product_name }): Found => {
    const product = vector()
    const similarity = Vector.clampCosine(Vector.dot(centred, product))
    const liked = Option.map(taste, ({ direction }) => Vector.clampCosine(Vector.dot(direction, product)))
    const score = similarity + tasteWeight * Option.getOrElse(liked, () => 0)
    return { product_id, product_name, category, score, similarity, taste: Option.getOrNull(liked) }
  })
  return { personalised: Option.isSome(taste), items }
})

const similarUsers = Effect.fn("similarUsers")(function* (
  services: Services,
  user_id: UserId,
  limit: number,
) {
  const { catalogue, users } = services
  const embedding = yield* loadEmbedding(services, user_id)
  const count = yield* users.count
  if (count > mostUsersCompared) return yield* new TooManyUsers({ users: count, most: mostUsersCompared })
  const mean = yield* catalogue.mean
  const toDirection = (user: UserEmbedding) => {
    const long = Taste.longMemory(user, mean)
    return long && Vector.divide(long, Vector.norm(long))
  }
  const own = toDirection(embedding)
  if (own === undefined) return yield* noDirection(user_id)
  const best: Array<typeof SimilarUser.Type> = []
  let compared = 0
  yield* Stream.runForEach(users.stream, ({ embedding: other, user_id: id }) =>
    Effect.sync(() => {
      if (other === undefined || id === embedding.user_id || other.space !== catalogue.space) return
      const direction = toDirection(other)
      if (direction === undefined) return
      compared += 1
      const similarity = Vector.clampCosine(Vector.dot(own, direction))
      insertTopK(best, limit, { user_id: id, similarity }, moreSimilar)
    }),
  )
  return { compared, users: best }
})

const make = Effect.gen(function* () {
  const all = yield* services
  const { catalogue, config, popularity } = all
  const bonus = Effect.map(popularity.counts, (counts) => bonusBy(counts, config.popularityWeight))
  yield* Effect.forkScoped(warmUp(catalogue, bonus))
  return Recommender.of({
    recommend: (user, options) => recommend(all, user, options),
    buyAgain: (user, limit) => buyAgain(all, user, limit),
    similarProducts: (product, options) => similarProducts(all, product, options),
    search: (phrase, options) => search(all, phrase, options),
    similarUsers: (user, limit) => similarUsers(all, user, limit),
  })
})

export const layer = Layer.scoped(Recommender, make)
