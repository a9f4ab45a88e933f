/** Creates and changes products, and embeds the texts of those that come without a vector. */
import { Array as Arr, Effect, Either } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import type { ProductId } from "../model/Interaction.ts"
import type { FieldIssue } from "../model/Problem.ts"
import type { Product } from "../model/Product.ts"
import * as Vector from "../model/Vector.ts"
import type { PhraseEmbedderError } from "../ports/PhraseEmbedder.ts"
import {
  type ProductChange,
  ProductEmbeddings,
  type StoredProduct,
  type Upserted,
} from "../ports/ProductEmbeddings.ts"
import { ProductPairs } from "../ports/ProductPairs.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import { EventVectors } from "../update/EventVectors.ts"

/** An absent field leaves the stored one as it is. */
export type ProductInput = Pick<Product, "product_id"> & {
  readonly [Field in Exclude<keyof Product, "product_id">]?: Product[Field] | undefined
} & {
  readonly vector?: ArrayLike<number> | undefined
  /** Is embedded, unless there is a vector. */
  readonly text?: string | undefined
}

export type Written = Either.Either<Exclude<Upserted, "missing">, FieldIssue | PhraseEmbedderError>

type Embedded = ReadonlyMap<string, Either.Either<Float32Array, PhraseEmbedderError>>

/** The text that stands for a product without a vector and a text. */
export const textOf = ({ category, product_name, text }: Omit<ProductInput, "product_id">): string =>
  text ?? [product_name, category].filter((name) => (name ?? "").trim() !== "").join(", ")

const embedOnce = (texts: ReadonlyArray<string>) =>
  Effect.flatMap(EventVectors, ({ ofTexts }) =>
    Effect.map(ofTexts(texts), (vectors): Embedded => new Map(Arr.zip(texts, vectors))),
  )

const missing: FieldIssue = {
  field: "",
  detail: "there is no such product yet: give a product_name, a text or a vector to create it",
}

/**
 * The text to embed for each product. A new product without vector and text is embedded by its name and category. A
 * product that exists keeps its vector.
 */
const textsOf = (inputs: ReadonlyArray<ProductInput>, stored: ReadonlyMap<ProductId, StoredProduct>) => {
  const created = new Set<ProductId>()
  return inputs.map((input) => {
    const { product_id, text, vector } = input
    const exists = created.has(product_id) || stored.get(product_id)?.deleted === false
    const needed = vector === undefined ? (text ?? (exists ? "" : textOf(input))) : ""
    if (vector !== undefined || needed !== "") created.add(product_id)
    return needed === "" ? undefined : needed
  })
}

/** Writes what can be written, as if one by one, and answers in the order of the inputs. */
export const writeProducts = Effect.fn("writeProducts")(function* <R>(
  inputs: ReadonlyArray<ProductInput>,
  embed: (texts: ReadonlyArray<string>) => Effect.Effect<Embedded, PhraseEmbedderError, R>,
) {
  const products = yield* ProductEmbeddings
  const { space } = yield* EventVectors
  const { dimensions } = yield* EmbeddingConfig
  const ids = [...new Set(inputs.map(({ product_id }) => product_id))]
  const stored = new Map((yield* products.find(ids)).map((product) => [product.product_id, product]))
  const texts = textsOf(inputs, stored)
  /** The vector of an unchanged text is not paid for again. */
  const storedVector = ({ product_id }: ProductInput, text: string) => {
    const product = stored.get(product_id)
    return product?.text === text &&
      product.space === space &&
      Vector.problem(product.embedding, dimensions) === undefined
      ? product.embedding
      : undefined
  }
  const toEmbed = new Set(
    texts.flatMap((text, index) =>
      text === undefined || storedVector(inputs[index]!, text) !== undefined ? [] : [text],
    ),
  )
  const embedded: Embedded = toEmbed.size === 0 ? new Map() : yield* embed([...toEmbed])

  const toChange = (
    { text: _, vector, ...fields }: ProductInput,
    text: string | undefined,
  ): Either.Either<ProductChange, FieldIssue | PhraseEmbedderError> => {
    const change = fields as ProductChange
    if (vector !== undefined) {
      const detail = Vector.problem(vector, dimensions)
      return detail === undefined
        ? Either.right({ ...change, embedding: Float32Array.from(vector), space, text: null })
        : Either.left({ field: "vector", detail })
    }
    if (text === undefined) return Either.right(change)
    const own = storedVector(fields, text)
    const found = own === undefined ? embedded.get(text)! : Either.right(own)
    return Either.mapBoth(found, {
      onLeft: (error) => (RetryPolicies.isFinal(error) ? { field: "text", detail: error.message } : error),
      onRight: (embedding) => ({ ...change, embedding, space, text }),
    })
  }
  const changes = inputs.map((input, index) => toChange(input, texts[index]))
  const outcomes = (yield* products.upsert(Arr.getRights(changes)))[Symbol.iterator]()
  return changes.map(
    (change): Written =>
      Either.flatMap(change, () => {
        const outcome = outcomes.next().value ?? "missing"
        return outcome === "missing" ? Either.left(missing) : Either.right(outcome)
      }),
  )
})

/** The same, with one attempt to embed the texts. */
export const writeOnce = (inputs: ReadonlyArray<ProductInput>) => writeProducts(inputs, embedOnce)

/** Deletes products and their pairs. Answers which of them existed. */
export const removeProducts = Effect.fnUntraced(function* (ids: ReadonlyArray<ProductId>) {
  const removed = yield* (yield* ProductEmbeddings).remove(ids)
  yield* (yield* ProductPairs).remove(ids)
  return removed
})
