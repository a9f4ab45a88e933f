/** `evaluate FILE`: which settings predict a history best, and whether a simple method predicts it better. */
import { Array as Arr, Clock, Effect, Either, Stream } from "effect"
import * as RecordFile from "../../layers/files/RecordFile.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as Evaluation from "../../services/history/Evaluation.ts"
import * as InteractionFile from "../../services/history/InteractionFile.ts"
import type { EventType, EventTypes } from "../../services/model/EventTypes.ts"
import type { Interaction, ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { PhraseEmbedder, type TextKind } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { textOf } from "../../services/recommend/ProductWriter.ts"
import * as Settings from "../../services/Settings.ts"
import type { Reached } from "../cli/support/Progress.ts"
import { beginningOfRecords, ImportRefused } from "./ImportInteractions.ts"
import { productLines } from "./ImportProducts.ts"

type Products = ReadonlyMap<ProductId, Float32Array>

const textsAtOnce = 256

/** Vectors by text; texts that can't be embedded are left out. */
const embedTexts = Effect.fnUntraced(function* (texts: ReadonlyArray<string>, kind: TextKind) {
  const embedder = yield* PhraseEmbedder
  const found = new Map<string, Float32Array>()
  for (const some of Arr.chunksOf(texts, textsAtOnce))
    for (const [text, vector] of Arr.zip(some, yield* embedder.embed(some, kind)))
      if (Either.isRight(vector)) found.set(text, vector.right)
  return found
})

export const productsOfFile = Effect.fn("productsOfFile")(function* (path: string) {
  const { dimensions } = yield* EmbeddingConfig
  const vectors = new Map<ProductId, Float32Array>()
  const texts = new Map<ProductId, string>()
  yield* Stream.runForEach(productLines(path), ({ line, product }) => {
    if (Either.isLeft(product))
      return new ImportRefused({ message: `${path}, line ${line}: ${product.left}` })
    const { product_id, vector } = product.right
    if (vector === undefined) texts.set(product_id, textOf(product.right))
    else if (Vector.problem(vector, dimensions) === undefined)
      vectors.set(product_id, Vector.normalise(Float32Array.from(vector)))
    return Effect.void
  })
  const found = yield* embedTexts([...new Set(texts.values())], "document")
  for (const [product_id, text] of texts) {
    const vector = found.get(text)
    if (vector !== undefined) vectors.set(product_id, vector)
  }
  return vectors
})

export const productsOfStack = Effect.gen(function* () {
  const { space } = yield* PhraseEmbedder
  const products = yield* ProductEmbeddings
  const vectors = new Map<ProductId, Float32Array>()
  yield* Stream.runForEach(products.stream(space), ({ embedding, product_id }) =>
    Effect.sync(() => {
      if (Vector.problem(embedding, embedding.length) === undefined)
        vectors.set(product_id, Vector.normalise(embedding))
    }),
  )
  return vectors
})

const none = {}
const recordsAtOnce = 1_000

const readHistory = Effect.fnUntraced(function* (
  file: string,
  reading: InteractionFile.Reading,
  eventTypes: EventTypes,
  progress: (reached: Reached) => Effect.Effect<void>,
) {
  const now = yield* Clock.currentTimeMillis
  const start = yield* beginningOfRecords(file, reading)
  const total = yield* RecordFile.sizeOf(file)
  const decode = InteractionFile.decoder(reading, start.columns, eventTypes)
  const interactions: Array<Interaction> = []
  /** Each user, product and phrase once, because millions of rows share thousands of them. */
  const interned = new Map<string, string>()
  const intern = (text: string) => {
    const known = interned.get(text)
    if (known === undefined) interned.set(text, text)
    return known ?? text
  }
  const compact = (interaction: Interaction): Interaction => {
    // A new string, because a cell of a CSV file keeps its whole line in memory.
    const occurred_at = new Date(interaction.occurred_at).toISOString()
    const facts = { user_id: intern(interaction.user_id), occurred_at, metadata: none }
    if (interaction.reference !== null) return { ...interaction, ...facts }
    return interaction.search_phrase !== null
      ? { ...interaction, ...facts, search_phrase: intern(interaction.search_phrase) }
      : { ...interaction, ...facts, product_id: intern(interaction.product_id) }
  }
  const retracted = new Set<string>()
  let rejected = 0
  yield* RecordFile.records(file, reading, start, recordsAtOnce).pipe(
    Stream.runForEach((records) => {
      for (const { problem, text } of records) {
        const decoded = problem === undefined ? decode(text, now) : Either.left(problem)
        if (Either.isLeft(decoded)) rejected += 1
        else if ("reference" in decoded.right) retracted.add(decoded.right.reference)
        else interactions.push(compact(decoded.right.interaction))
      }
      const { end: done, nextLine: line } = records.at(-1)!
      return progress({ count: interactions.length, line, ...(total === undefined ? {} : { done, total }) })
    }),
  )
  return { interactions: interactions.filter(({ message_id }) => !retracted.has(message_id)), rejected }
})

const lambdas = [0, 0.01, 0.023, 0.1]
const popularityWeights = [0, 0.2]
const moreAgain = 3

/** All settings to try, the configured one first. */
const grid = (configured: Evaluation.Setting): ReadonlyArray<Evaluation.Setting> => {
  const equal = Evaluation.equalWeights(configured.weights)
  const all = new Map<string, Evaluation.Setting>()
  const add = (setting: Evaluation.Setting) =>
    all.set(JSON.stringify(Object.entries(setting).toSorted()), setting)
  add(configured)
  for (const lambda of new Set([...lambdas, configured.lambda]))
    for (const weights of [configured.weights, equal])
      for (const history of ["cumulative", "recency"] as const)
        for (const mix of ["mixed", "long"] as const)
          for (const popularity of new Set([...popularityWeights, configured.popularity]))
            add({ ...configured, lambda, weights, history, mix, popularity })
  // What each term is worth.
  add({ ...configured, together: 0, again: 0 })
  add({ ...configured, together: 0 })
  add({ ...configured, again: 0 })
  // Shops of repeat purchases may want more of it, most of all if their vectors come from short texts.
  add({ ...configured, again: moreAgain * configured.again })
  return [...all.values()]
}

export interface EvaluateOptions {
  readonly reading: InteractionFile.Reading
  /** Predict only events of this type; all product events without it. */
  readonly type: EventType | undefined
  readonly most: number
  readonly unseenOnly: boolean
  readonly onRead: (reached: Reached) => Effect.Effect<void>
  readonly onPredicted: (reached: Reached) => Effect.Effect<void>
}

/** Settings of the grid have either the configured weights or equal ones. */
const weightsOf = (setting: Evaluation.Setting, configured: Evaluation.Setting) =>
  setting.weights === configured.weights ? ("configured" as const) : ("equal" as const)

const nameOf = (setting: Evaluation.Setting, configured: Evaluation.Setting) =>
  `taste λ ${setting.lambda}, ${weightsOf(setting, configured)} weights, ${setting.history}, ${setting.mix}, popularity ${setting.popularity}, together ${setting.together}, again ${setting.again}`

/** Figures of all methods: the baselines, then the settings. */
const toRows = (rankings: ReadonlyArray<Evaluation.Ranking>, settings: ReadonlyArray<Evaluation.Setting>) => {
  const figures = (method: number) => {
    const of = (metric: Evaluation.Metric) =>
      Evaluation.estimate(rankings, (ranks) => Evaluation.metricOfRank[metric](ranks[method]!))
    return { hit_rate: of("hit_rate"), ndcg: of("ndcg"), mrr: of("mrr") }
  }
  return [
    ...Evaluation.baselines.map((name, index) => ({
      name,
      setting: null,
      configured: false,
      ...figures(index),
    })),
    ...settings.map((setting, index) => ({
      name: nameOf(setting, settings[0]!),
      setting: { ...setting, weights: weightsOf(setting, settings[0]!) },
      configured: index === 0,
      ...figures(Evaluation.baselines.length + index),
    })),
  ]
}

/** Vectors of the phrases that the users whose interactions are predicted searched for. */
const embedPhrases = ({ interactions }: Evaluation.Plan, users: ReadonlySet<string>) =>
  embedTexts(
    [
      ...new Set(
        interactions.flatMap(({ search_phrase, user_id }) =>
          search_phrase !== null && users.has(user_id) ? search_phrase : [],
        ),
      ),
    ],
    "query",
  )

/** `again` counts only where nothing is excluded. */
const configuredSetting = Effect.fnUntraced(function* (unseenOnly: boolean) {
  const { eventTypes, history, lambda } = yield* EmbeddingConfig
  const popularity = yield* Settings.POPULARITY_WEIGHT
  const together = yield* Settings.TOGETHER_WEIGHT
  const again = unseenOnly ? 0 : yield* Settings.AGAIN_WEIGHT
  const weights = { popularity, together, again }
  return { lambda, weights: eventTypes.weights, history, mix: "mixed" as const, ...weights }
})

export const evaluate = Effect.fn("evaluate")(function* <E, R>(
  file: string,
  products: Effect.Effect<Products, E, R>,
  { most, onPredicted, onRead, reading, type, unseenOnly }: EvaluateOptions,
) {
  const { space } = yield* PhraseEmbedder
  const { eventTypes } = yield* EmbeddingConfig
  const types =
    type === undefined
      ? eventTypes.all.flatMap(({ kind, name, weight }) => (kind === "product" && weight > 0 ? [name] : []))
      : [type]
  const configured = yield* configuredSetting(unseenOnly)
  const settings = grid(configured)
  const catalogue = yield* products
  if (catalogue.size === 0)
    return yield* new ImportRefused({ message: "there are no products with vectors: give --products FILE" })
  const { interactions, rejected } = yield* readHistory(file, reading, eventTypes, onRead)
  const plan = Evaluation.plan(interactions, { types, most, unseenOnly, known: (id) => catalogue.has(id) })
  if (plan.targets.size === 0)
    return yield* new ImportRefused({
      message: `nothing to predict: the last fifth of ${plan.interactions.length} interactions has no ${types.join(" or ")} of a product with a vector by a user with earlier interactions`,
    })
  const users = new Set(
    plan.interactions.flatMap(({ message_id, user_id }) => (plan.targets.has(message_id) ? user_id : [])),
  )
  const phrases = yield* embedPhrases(plan, users)

  const rankings: Array<Evaluation.Ranking> = []
  const predictions = Evaluation.predict(plan, {
    products: [...catalogue].map(([product_id, vector]) => ({ product_id, vector })),
    vectorOf: ({ product_id, search_phrase }) =>
      search_phrase === null ? catalogue.get(product_id ?? "") : phrases.get(search_phrase),
    space,
    settings,
    lambda: configured.lambda,
    unseenOnly,
  })
  for (const ranking of predictions) {
    rankings.push(ranking)
    const count = rankings.length
    yield* onPredicted({ count, done: count, total: plan.targets.size })
    yield* Effect.yieldNow()
  }

  const verdict = Evaluation.compareOnHoldout(rankings, settings.length)
  const best = settings[verdict.setting]!
  return {
    interactions: plan.interactions.length,
    rejected,
    products: catalogue.size,
    foretold: rankings.length,
    users: users.size,
    rows: toRows(rankings, settings),
    verdict: { ...verdict, setting: nameOf(best, configured), best },
  }
})
