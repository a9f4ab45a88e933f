/** Handlers of the group `embeddings`: what is stored of users and products. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect, Either, type ParseResult, Schema } from "effect"
import { api, ProductEmbeddingBody, vectorBytes } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { issues } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as Vector from "../../services/model/Vector.ts"
import { Eraser } from "../../services/operate/Eraser.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { Catalogue } from "../../services/recommend/Catalogue.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"
import { readJson } from "./HttpBody.ts"
import { answer, serviceUnavailable } from "./HttpProblems.ts"

type Request = HttpServerRequest.HttpServerRequest

const decodeProduct = Schema.decodeUnknownEither(ProductEmbeddingBody, {
  errors: "all",
  onExcessProperty: "error",
})

export const embeddings = HttpApiBuilder.group(api, "embeddings", (handlers) =>
  Effect.gen(function* () {
    const users = yield* UserEmbeddings
    const products = yield* ProductEmbeddings
    const catalogue = yield* Catalogue
    const vectors = yield* EventVectors
    const eraser = yield* Eraser
    const { dimensions } = yield* EmbeddingConfig

    const show = Effect.fnUntraced(function* (user: string, withVector: boolean) {
      const records = yield* Effect.mapError(users.load([user]), serviceUnavailable("user embeddings"))
      const record = records.get(user)
      if (record?.embedding === undefined)
        return yield* new Problem({ status: 404, detail: `user ${user} has no embedding` })
      const { created_at, embedding, last_updated, metadata, recent, updated_at, ...facts } = record.embedding
      const iso = (instant: number) => new Date(instant).toISOString()
      return yield* HttpServerResponse.json({
        ...facts,
        dimension_count: embedding.length,
        last_updated: iso(last_updated),
        created_at: iso(created_at),
        updated_at: iso(updated_at),
        version: record.version,
        recent: recent.map(({ product_id, search_phrase, ...event }) => ({
          ...event,
          ...(search_phrase === null ? { product_id } : { search_phrase }),
        })),
        metadata: { ...metadata, last_recalculation: iso(metadata.last_recalculation) },
        ...(withVector ? { embedding: [...embedding] } : {}),
      })
    })

    const vectorOf = Effect.fnUntraced(function* ({ text, vector }: typeof ProductEmbeddingBody.Type) {
      if (vector !== undefined) {
        const detail = Vector.problem(vector, dimensions)
        return detail === undefined
          ? Float32Array.from(vector)
          : yield* unprocessable([{ field: "vector", detail }])
      }
      const [embedded] = yield* vectors.ofTexts([text ?? ""])
      return yield* Either.mapLeft(embedded!, (error) =>
        error.reason === "invalid_input" || error.reason === "bad_vector"
          ? unprocessable([{ field: "text", detail: error.message }])
          : serviceUnavailable("embeddings of texts")(),
      )
    })

    const store = Effect.fnUntraced(function* (product_id: string, request: Request) {
      const decoded = decodeProduct((yield* readJson(request, vectorBytes(dimensions))) ?? {})
      const body = yield* Either.mapLeft(decoded, (error: ParseResult.ParseError) =>
        unprocessable(
          issues(error).map(({ field, problem }) => ({
            field,
            detail: problem
              .replace(/^is unexpected.*/, "is not a known field")
              .replace(/^Expected Struct.*/, "must be a JSON object"),
          })),
        ),
      )
      const embedding = yield* vectorOf(body)
      const { category = null, product_name = null, text = null } = body
      const product = { product_id, embedding, product_name, category, space: vectors.space, text }
      const [created = false] = yield* Effect.mapError(
        products.upsert([product]),
        serviceUnavailable("product embeddings"),
      )
      yield* catalogue.invalidate
      return yield* HttpServerResponse.json(
        { product_id, space: vectors.space, dimension_count: embedding.length, created },
        { status: created ? 201 : 200 },
      )
    })

    const erase = (user: string) =>
      eraser.erase(user).pipe(
        Effect.tapError((error) =>
          Effect.logWarning("erasure.unfinished").pipe(Effect.annotateLogs({ error: error.message })),
        ),
        Effect.mapError(serviceUnavailable("parts of what is stored of the user")),
        Effect.zipRight(HttpServerResponse.empty({ status: 204 })),
      )

    return handlers
      .handleRaw("eraseUser", ({ path }) => answer(erase(path.userId)))
      .handleRaw("embedding", ({ path, urlParams }) => answer(show(path.userId, urlParams.vector === "true")))
      .handleRaw("putProduct", ({ path, request }) => answer(store(path.productId, request)))
  }),
)
