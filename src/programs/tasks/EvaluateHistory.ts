/** `evaluate FILE`: which settings would have foretold a history, and whether something simpler would have done it better. */
import { FileSystem } from "@effect/platform"
import { Array as Arr, Chunk, Clock, Effect, Either, Stream } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as Evaluation from "../../services/history/Evaluation.ts"
import * as InteractionFile from "../../services/history/InteractionFile.ts"
import type { EventType, EventTypes } from "../../services/model/EventTypes.ts"
import type { Interaction, ProductId } from "../../services/model/Interaction.ts"
import * as Vector from "../../services/model/Vector.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import type { Reached } from "../cli/support/Progress.ts"
import { beginningOfRecords, bytesAtOnce, ImportRefused } from "./ImportInteractions.ts"
import { decodeLine } from "./ImportProducts.ts"

type Products = ReadonlyMap<ProductId, Float32Array>

const textsAtOnce = 256

/** Vectors of texts; those that can't be embedded are left out. */
const embedded = Effect.fnUntraced(function* (texts: ReadonlyArray<string>) {
  const embedder = yield* PhraseEmbedder
  const found = new Map<string, Float32Array>()
  for (const some of Arr.chunksOf(texts, textsAtOnce))
    for (const [text, vector] of Arr.zip(some, yield* embedder.embed(some)))
      if (Either.isRight(vector)) found.set(text, vector.right)
  return found
})

/** Products of a file as `products import` reads it. */
export const productsOfFile = Effect.fn("productsOfFile")(function* (path: string) {
  const files = yield* FileSystem.FileSystem
  const { dimensions } = yield* EmbeddingConfig
  const vectors = new Map<ProductId, Float32Array>()
  const texts = new Map<ProductId, string>()
  const lines = yield* files.stream(path).pipe(Stream.decodeText(), Stream.splitLines, Stream.runCollect)
  for (const [index, text] of Chunk.toReadonlyArray(lines).entries()) {
    if (text.trim() === "") continue
    const line = decodeLine(text)
    if (Either.isLeft(line))
      return yield* new ImportRefused({ message: `${path}, line ${index + 1} is not a product` })
    const { category, product_id, product_name, text: own, vector } = line.right
    if (vector === undefined) texts.set(product_id, own ?? `${product_name}, ${category}`)
    else if (Vector.problem(vector, dimensions) === undefined)
      vectors.set(product_id, Vector.normalise(Float32Array.from(vector)))
  }
  const found = yield* embedded([...new Set(texts.values())])
  for (const [product_id, text] of texts) {
    const vector = found.get(text)
    if (vector !== undefined) vectors.set(product_id, vector)
  }
  return vectors
})

/** Products of the configured stack. */
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

const readHistory = Effect.fnUntraced(function* (
  file: string,
  reading: InteractionFile.Reading,
  eventTypes: EventTypes,
  progress: (reached: Reached) => Effect.Effect<void>,
) {
  const files = yield* FileSystem.FileSystem
  const now = yield* Clock.currentTimeMillis
  const start = yield* beginningOfRecords(file, reading)
  const total = Number((yield* files.stat(file)).size)
  const decode = InteractionFile.decoder(reading, start.columns, eventTypes)
  const split = InteractionFile.splitter(reading, start)
  const interactions: Array<Interaction> = []
  /** Each user, product and phrase once: millions of rows share some thousands of them. */
  const words = new Map<string, string>()
  const shared = (word: string) => {
    const known = words.get(word)
    if (known === undefined) words.set(word, word)
    return known ?? word
  }
  const lean = (interaction: Interaction): Interaction => {
    // Made anew, for a cell of a CSV file holds on to its whole line.
    const occurred_at = new Date(interaction.occurred_at).toISOString()
    const facts = { user_id: shared(interaction.user_id), occurred_at, metadata: none }
    return interaction.search_phrase !== null
      ? { ...interaction, ...facts, search_phrase: shared(interaction.search_phrase) }
      : { ...interaction, ...facts, product_id: shared(interaction.product_id) }
  }
  let rejected = 0
  let done = start.offset
  const take = (records: ReadonlyArray<InteractionFile.RawRecord>) => {
    for (const { problem, text } of records) {
      const decoded = problem === undefined ? decode(text, now) : Either.left(problem)
      if (Either.isLeft(decoded)) rejected += 1
      else interactions.push(lean(decoded.right.interaction))
    }
  }
  yield* files.stream(file, { offset: start.offset, chunkSize: bytesAtOnce }).pipe(
    Stream.runForEach((chunk) => {
      take(split.push(chunk))
      done += chunk.length
      return progress({ count: interactions.length, done, total })
    }),
  )
  take(split.end())
  return { interactions, rejected }
})

const lambdas = [0, 0.01, 0.023, 0.1]
const popularityWeights = [0, 0.2]

/** The grid, the configured setting first. */
const grid = (
  configured: Evaluation.Setting,
  equal: Evaluation.Setting["weights"],
): ReadonlyArray<Evaluation.Setting> => {
  const all = new Map<string, Evaluation.Setting>()
  const add = (setting: Evaluation.Setting) =>
    all.set(JSON.stringify(Object.entries(setting).toSorted()), setting)
  add(configured)
  for (const lambda of new Set([...lambdas, configured.lambda]))
    for (const weights of [configured.weights, equal])
      for (const history of ["cumulative", "recency"] as const)
        for (const mix of ["mixed", "long"] as const)
          for (const popularity of new Set([...popularityWeights, configured.popularity]))
            add({ lambda, weights, history, mix, popularity })
  return [...all.values()]
}

/** Figures of one way. */
export interface Row extends Readonly<Record<Evaluation.Metric, Evaluation.Estimate>> {
  readonly name: string
  /** `null` for the simple ways. */
  readonly setting:
    | (Omit<Evaluation.Setting, "weights"> & { readonly weights: "configured" | "equal" })
    | null
  /** Whether it is the one of the present configuration. */
  readonly configured: boolean
}

export interface EvaluateOptions {
  readonly reading: InteractionFile.Reading
  /** Predict only events of this type; all product events without it. */
  readonly type: EventType | undefined
  readonly most: number
  readonly unseenOnly: boolean
  readonly reads: (reached: Reached) => Effect.Effect<void>
  readonly foretells: (reached: Reached) => Effect.Effect<void>
}

export const evaluate = Effect.fn("evaluate")(function* <E, R>(
  file: string,
  products: Effect.Effect<Products, E, R>,
  options: EvaluateOptions,
) {
  const config = yield* EmbeddingConfig
  const { space } = yield* PhraseEmbedder
  const popularity = yield* Settings.POPULARITY_WEIGHT
  const { history, lambda } = config
  const { weights } = config.eventTypes
  const equal = Evaluation.equalWeights(weights)
  const settings = grid({ lambda, weights, history, mix: "mixed", popularity }, equal)
  const catalogue = yield* products
  if (catalogue.size === 0)
    return yield* new ImportRefused({ message: "there are no products with vectors: give --products FILE" })
  const { interactions, rejected } = yield* readHistory(
    file,
    options.reading,
    config.eventTypes,
    options.reads,
  )
  const { most, type, unseenOnly } = options
  const types =
    type === undefined
      ? config.eventTypes.all.flatMap(({ kind, name }) => (kind === "product" ? [name] : []))
      : [type]
  const plan = Evaluation.plan(interactions, { types, most, unseenOnly, known: (id) => catalogue.has(id) })
  if (plan.targets.size === 0)
    return yield* new ImportRefused({
      message: `nothing to foretell: the last fifth of ${plan.interactions.length} interactions has no ${types.join(" or ")} of a product with a vector by a user who was there before`,
    })
  const users = new Set(
    plan.interactions.flatMap(({ message_id, user_id }) => (plan.targets.has(message_id) ? user_id : [])),
  )
  const phrases = yield* embedded([
    ...new Set(
      plan.interactions.flatMap(({ search_phrase, user_id }) =>
        search_phrase !== null && users.has(user_id) ? search_phrase : [],
      ),
    ),
  ])

  const foretold: Array<Evaluation.Ranking> = []
  const oneByOne = Evaluation.predict(plan, {
    products: [...catalogue].map(([product_id, vector]) => ({ product_id, vector })),
    vectorOf: ({ product_id, search_phrase }) =>
      search_phrase === null ? catalogue.get(product_id ?? "") : phrases.get(search_phrase),
    space,
    settings,
    lambda,
    unseenOnly,
  })
  for (const one of oneByOne) {
    foretold.push(one)
    const count = foretold.length
    yield* options.foretells({ count, done: count, total: plan.targets.size })
    yield* Effect.yieldNow()
  }

  const figures = (way: number) => {
    const of = (metric: Evaluation.Metric) =>
      Evaluation.estimate(foretold, (ranks) => Evaluation.metricOfRank[metric](ranks[way]!))
    return { hit_rate: of("hit_rate"), ndcg: of("ndcg"), mrr: of("mrr") }
  }
  const nameOf = (setting: Evaluation.Setting) =>
    `taste λ ${setting.lambda}, ${setting.weights === equal ? "equal" : "configured"} weights, ${setting.history}, ${setting.mix}, popularity ${setting.popularity}`
  const rows: ReadonlyArray<Row> = [
    ...Evaluation.baselines.map((name, way) => ({ name, setting: null, configured: false, ...figures(way) })),
    ...settings.map((setting, index) => ({
      name: nameOf(setting),
      setting: {
        ...setting,
        weights: setting.weights === equal ? ("equal" as const) : ("configured" as const),
      },
      configured: index === 0,
      ...figures(Evaluation.baselines.length + index),
    })),
  ]
  const verdict = Evaluation.compareOnHoldout(foretold, settings.length)
  return {
    interactions: plan.interactions.length,
    rejected,
    products: catalogue.size,
    foretold: foretold.length,
    users: users.size,
    rows,
    verdict: { ...verdict, setting: nameOf(settings[verdict.setting]!), best: settings[verdict.setting]! },
  }
})
