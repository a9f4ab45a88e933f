/** Handlers of the group `embeddings`: stored data of users and products. */
import { type Headers, HttpApiBuilder, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Clock, Effect } from "effect"
import {
  CatalogueMean,
  EmbeddingsBody,
  embeddingsBodyBytes,
  ProductEmbeddingBody,
} from "../../services/api/EmbeddingApi.ts"
import { Embedding, embeddingJson } from "../../services/api/EmbeddingJson.ts"
import { api, vectorBytes } from "../../services/api/InteractionApi.ts"
import { userVectorJson } from "../../services/api/VectorJson.ts"
import { encodeVectors } from "../../services/api/VectorRows.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { yieldToEventLoop } from "../../services/EventLoop.ts"
import { Problem } from "../../services/model/Problem.ts"
import * as Vector from "../../services/model/Vector.ts"
import { Eraser } from "../../services/operate/Eraser.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { Catalogue } from "../../services/recommend/Catalogue.ts"
import { type Read, readTastes, readVectors } from "../../services/recommend/EmbeddingReads.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"
import { ownerOf } from "../../services/update/People.ts"
import { decodeBody } from "./HttpBody.ts"
import { makeConcurrencyLimit } from "./HttpConcurrencyLimit.ts"
import { serviceUnavailable, toProblem } from "./HttpProblems.ts"
import { writeOne } from "./HttpProducts.ts"
import {
  float32Response,
  hasMatch,
  octetStream,
  prefersFloat32,
  unlessMatched,
} from "./HttpRepresentation.ts"

/** A person's vector is for one client alone, and for that one only after asking again. */
const cacheControl = { "cache-control": "private, no-cache", vary: "Accept" }

/** Short for the values that an answer depends on. */
const fingerprint = (...values: ReadonlyArray<string | number | Uint8Array>): string =>
  values
    .reduce(
      (hash: bigint, value) => Bun.hash.wyhash(typeof value === "number" ? String(value) : value, hash),
      0n,
    )
    .toString(36)

const noEmbedding = (detail: string) => Problem.of("not-found", detail)

const embeddingResponse = HttpServerResponse.schemaJson(Embedding)
const meanResponse = HttpServerResponse.schemaJson(CatalogueMean)

interface Wanted {
  readonly read?: Read | undefined
  readonly vector?: "true" | "false" | undefined
}

/**
 * The embedding of the id's owner: an ETag of an alias covers the owner, so it changes with a merge. A taste moves all the
 * time, so its ETag is weak, and there is none while the vector of a search is missing.
 */
const showEmbedding = Effect.fnUntraced(function* (user: string, { read = "stored", vector }: Wanted) {
  const users = yield* UserEmbeddings
  const { record } = yield* toProblem(ownerOf(users, user))
  const embedding = record?.embedding
  if (record === undefined || embedding === undefined)
    return yield* noEmbedding(`user ${user} has no embedding`)
  const { version } = record
  const { headers } = yield* HttpServerRequest.HttpServerRequest
  const isTaste = read === "taste"
  const form = prefersFloat32(headers.accept)
    ? "float32"
    : (vector ?? String(isTaste)) === "true"
      ? "vector"
      : "facts"
  const common = { ...cacheControl, "x-space": embedding.space, "x-version": String(version) }
  const respond = (shown: Float32Array) => (headers: Headers.Input) => {
    if (form === "float32") return float32Response(shown, headers)
    const json = {
      ...embeddingJson(embedding, version),
      ...(read === "taste" && { read }),
      ...(form === "vector" && { embedding: Array.from(shown) }),
    }
    return Effect.orDie(embeddingResponse(json, { headers }))
  }
  const of = fingerprint(embedding.user_id, embedding.updated_at, read, form)
  if (!isTaste)
    return yield* unlessMatched({ ...common, etag: `"${version}-${of}"` }, respond(embedding.embedding))

  const sources = yield* Effect.all({ catalogue: Catalogue, config: EmbeddingConfig, vectors: EventVectors })
  const { space } = sources.catalogue
  if (embedding.space !== space)
    return yield* noEmbedding(
      `the embedding of user ${user} is in space ${embedding.space}, not ${space}: rebuild it`,
    )
  const mean = yield* toProblem(sources.catalogue.mean)
  const hour = Math.floor((yield* Clock.currentTimeMillis) / 3_600_000)
  const etag = `W/"${version}-${fingerprint(of, Vector.toBytes(mean), hour)}"`
  if (hasMatch(headers["if-none-match"], etag))
    return HttpServerResponse.empty({ status: 304, headers: { ...common, etag } })
  const [found] = yield* toProblem(readTastes(sources, [embedding]))
  if (found?.taste === undefined) return yield* noEmbedding(`the taste of user ${user} has no direction`)
  return yield* respond(found.taste.direction)({ ...common, ...(found.isComplete && { etag }) })
})

const showMany = Effect.fnUntraced(function* ({
  format,
  read = "stored",
  user_ids,
}: typeof EmbeddingsBody.Type) {
  const { dimensions: dimension_count } = yield* EmbeddingConfig
  const { space } = yield* EventVectors
  const found = yield* toProblem(readVectors(user_ids, read))
  const facts = { read, space, dimension_count }
  const options = { headers: { "cache-control": "no-store", "x-space": space } }
  if (format === "float32") {
    const bytes = encodeVectors(
      facts,
      found.filter((one) => one !== null),
    )
    return HttpServerResponse.uint8Array(bytes, { ...options, contentType: octetStream })
  }
  const json: Array<Uint8Array> = [Buffer.from(`${JSON.stringify(facts).slice(0, -1)},"embeddings":[`)]
  for (const [index, one] of found.entries()) {
    if (index > 0) json.push(Buffer.from(","))
    json.push(one === null ? Buffer.from("null") : userVectorJson(one))
    if (index % 16 === 15) yield* yieldToEventLoop
  }
  json.push(Buffer.from("]}"))
  return HttpServerResponse.uint8Array(Buffer.concat(json), { ...options, contentType: "application/json" })
})

const showMean = Effect.gen(function* () {
  const catalogue = yield* Catalogue
  const mean = yield* toProblem(catalogue.mean)
  const { headers } = yield* HttpServerRequest.HttpServerRequest
  const asFloat32 = prefersFloat32(headers.accept)
  const { space } = catalogue
  const json = { space, dimension_count: mean.length, mean: Array.from(mean) }
  const etag = `"${fingerprint(space, Vector.toBytes(mean), String(asFloat32))}"`
  return yield* unlessMatched({ ...cacheControl, "x-space": space, etag }, (headers) =>
    asFloat32 ? float32Response(mean, headers) : Effect.orDie(meanResponse(json, { headers })),
  )
})

const storeProduct = Effect.fnUntraced(function* (
  product_id: string,
  body: typeof ProductEmbeddingBody.Type,
) {
  const { dimensions } = yield* EmbeddingConfig
  const { space } = yield* EventVectors
  const created = (yield* writeOne({ ...body, product_id })) === "created"
  const stored = { product_id, space, dimension_count: dimensions }
  return created ? { ...stored, created } : { ...stored, created }
})

const eraseUser = Effect.fnUntraced(function* (user: string) {
  const eraser = yield* Eraser
  yield* eraser.erase(user).pipe(
    Effect.tapError(({ message }) =>
      Effect.annotateLogs(Effect.logWarning("erasure.unfinished"), { error: message }),
    ),
    Effect.mapError(() => serviceUnavailable("parts of the user's data")),
  )
  yield* Effect.annotateLogs(Effect.logInfo("erasure.done"), { user_id: user })
})

/** Five answers of 1,000 tastes take a second. */
const limitOfMany = { running: 2, waiting: 48 }

const decodeMany = decodeBody(EmbeddingsBody)
const decodeProduct = decodeBody(ProductEmbeddingBody)

export const embeddings = HttpApiBuilder.group(api, "embeddings", (handlers) =>
  Effect.map(EmbeddingConfig, ({ dimensions }) => {
    const limited = makeConcurrencyLimit(limitOfMany)
    return (
      handlers
        .handle("eraseUser", ({ path }) => eraseUser(path.userId))
        // Raw: the client chooses the form of the answer, or see decodeBody.
        .handleRaw("embedding", ({ path, urlParams }) => showEmbedding(path.userId, urlParams))
        .handleRaw("many", ({ request }) =>
          Effect.flatMap(decodeMany(request, embeddingsBodyBytes), (body) => limited(showMany(body))),
        )
        .handleRaw("catalogueMean", () => showMean)
        .handleRaw("putProduct", ({ path, request }) =>
          Effect.flatMap(decodeProduct(request, vectorBytes(dimensions)), (body) =>
            storeProduct(path.productId, body),
          ),
        )
    )
  }),
)
