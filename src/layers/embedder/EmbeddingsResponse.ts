/** The vectors in a response of the embeddings API. A vector that may belong to another phrase is never used. */
import { Either } from "effect"
import * as Vector from "../../services/model/Vector.ts"

/**
 * The embeddings of `count` phrases, in their order. Some services leave `index` out, and some only where it is 0.
 * Throws if an embedding is missing, or if the indexes do not tell which phrase each embedding belongs to.
 */
export const inOrder = (data: unknown, count: number): ReadonlyArray<unknown> => {
  if (!Array.isArray(data)) throw new Error("the response has no list of embeddings")
  if (data.length !== count) throw new Error(`the response has ${data.length} embeddings instead of ${count}`)
  const items: ReadonlyArray<{ readonly embedding?: unknown; readonly index?: unknown } | null> = data
  if (items.every((item) => item?.index == null)) return items.map((item) => item?.embedding)
  const byIndex = new Map(items.map((item) => [item?.index ?? 0, item?.embedding]))
  return items.map((_, index) => {
    if (byIndex.has(index)) return byIndex.get(index)
    throw new Error(`the response has no embedding with index ${index} of ${count}`)
  })
}

const fromNumbers = (numbers: ReadonlyArray<unknown>): Either.Either<Float32Array, string> => {
  const wrong = numbers.findIndex((value) => typeof value !== "number")
  return wrong < 0
    ? Either.right(Float32Array.from(numbers as ReadonlyArray<number>))
    : Either.left(`has ${JSON.stringify(numbers[wrong])} at index ${wrong}, which is not a number`)
}

/** The client library's own decoding of base64 is eight times as slow. */
const fromBase64 = (text: string): Either.Either<Float32Array, string> => {
  const bytes = Buffer.from(text, "base64")
  // Buffer skips characters that are not base64, so that fewer bytes than announced show a damaged text.
  return bytes.length === Buffer.byteLength(text, "base64") &&
    bytes.length % Float32Array.BYTES_PER_ELEMENT === 0
    ? Either.right(Vector.fromBytes(bytes))
    : Either.left("is not base64 of float32 numbers")
}

/** A unit vector, or what is wrong with the embedding: base64 of little-endian float32, or a list of numbers. */
export const toVector = (embedding: unknown, dimensions: number): Either.Either<Float32Array, string> => {
  const decoded = Array.isArray(embedding)
    ? fromNumbers(embedding)
    : typeof embedding === "string"
      ? fromBase64(embedding)
      : Either.left("is missing in the response or not a vector")
  return Either.flatMap(decoded, (vector) => {
    const problem = Vector.problem(vector, dimensions)
    return problem === undefined ? Either.right(Vector.normalise(vector)) : Either.left(problem)
  })
}
