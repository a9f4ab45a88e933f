/** Handlers of the group `embeddings`: stored data of users and products. */
import { HttpApiBuilder } from "@effect/platform"
import { Effect } from "effect"
import { embeddingJson } from "../../services/api/EmbeddingJson.ts"
import { api, ProductEmbeddingBody, vectorBytes } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { Problem } from "../../services/model/Problem.ts"
import { Eraser } from "../../services/operate/Eraser.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { EventVectors } from "../../services/update/EventVectors.ts"
import { ownerOf } from "../../services/update/People.ts"
import { decodeBody } from "./HttpBody.ts"
import { serviceUnavailable, toProblem } from "./HttpProblems.ts"
import { writeOne } from "./HttpProducts.ts"

const showEmbedding = Effect.fnUntraced(function* (user: string, withVector: boolean) {
  const users = yield* UserEmbeddings
  const { record } = yield* toProblem(ownerOf(users, user))
  if (record?.embedding === undefined)
    return yield* new Problem({ status: 404, detail: `user ${user} has no embedding` })
  const json = embeddingJson(record.embedding, record.version)
  return withVector ? { ...json, embedding: [...record.embedding.embedding] } : json
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

const decodeProduct = decodeBody(ProductEmbeddingBody)

export const embeddings = HttpApiBuilder.group(api, "embeddings", (handlers) =>
  Effect.map(EmbeddingConfig, ({ dimensions }) =>
    handlers
      .handle("eraseUser", ({ path }) => eraseUser(path.userId))
      .handle("embedding", ({ path, urlParams }) => showEmbedding(path.userId, urlParams.vector === "true"))
      // Raw: see decodeBody.
      .handleRaw("putProduct", ({ path, request }) =>
        Effect.flatMap(decodeProduct(request, vectorBytes(dimensions)), (body) =>
          storeProduct(path.productId, body),
        ),
      ),
  ),
)
