/** Handlers of the group `products`. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect, Either, Schema } from "effect"
import { api, vectorBytes } from "../../services/api/InteractionApi.ts"
import {
  mostProducts,
  ProductChangeBody,
  ProductItem,
  type ProductsReport,
  productsBodyBytes,
} from "../../services/api/ProductApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { yieldToEventLoop } from "../../services/EventLoop.ts"
import { issues } from "../../services/model/Interaction.ts"
import {
  type FieldIssue,
  fieldIssue,
  Problem,
  shapeProblem,
  unprocessable,
} from "../../services/model/Problem.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { Catalogue } from "../../services/recommend/Catalogue.ts"
import {
  type ProductInput,
  removeProducts,
  type Written,
  writeOnce,
} from "../../services/recommend/ProductWriter.ts"
import { decodeBody, onWebRequest, parseBody } from "./HttpBody.ts"
import { serviceUnavailable, toProblem } from "./HttpProblems.ts"

const write = (inputs: ReadonlyArray<ProductInput>) =>
  toProblem(writeOnce(inputs)).pipe(Effect.zipLeft(Effect.flatMap(Catalogue, ({ invalidate }) => invalidate)))

const problemOf = (error: Either.Either.Left<Written>): Problem =>
  "field" in error ? unprocessable([error]) : serviceUnavailable("embeddings of texts")

/** Creates or changes one product. */
export const writeOne = (input: ProductInput) =>
  Effect.flatMap(write([input]), ([written]) => Either.mapLeft(written!, problemOf))

const show = Effect.fnUntraced(function* (product_id: string) {
  const products = yield* ProductEmbeddings
  const [product] = yield* toProblem(products.find([product_id]))
  if (product === undefined || product.deleted)
    return yield* Problem.of("not-found", `there is no product ${product_id}`)
  const { attributes, available, category, product_name, space, text, updated_at } = product
  const facts = { product_id, product_name, category, available, attributes, space, text }
  return { ...facts, updated_at: new Date(updated_at).toISOString() }
})

const change = Effect.fnUntraced(function* (product_id: string, body: typeof ProductChangeBody.Type) {
  const created = (yield* writeOne({ ...body, product_id })) === "created"
  const product = yield* show(product_id)
  return created ? { ...product, created } : { ...product, created }
})

const remove = Effect.fnUntraced(function* (product_id: string) {
  yield* toProblem(removeProducts([product_id]))
  yield* (yield* Catalogue).invalidate
})

const decodeItem = Schema.decodeUnknownEither(ProductItem, { errors: "all", onExcessProperty: "error" })

const toInput = (item: unknown): Either.Either<ProductInput, ReadonlyArray<FieldIssue>> => {
  const problem = shapeProblem(item)
  return problem === undefined
    ? Either.mapLeft(decodeItem(item), (error) => issues(error).map(fieldIssue))
    : Either.left([{ field: "", detail: problem }])
}

type Result = (typeof ProductsReport.Type)["results"][number]

/** The contract lists the statuses of all problems that an item can have. */
const rejection = (index: number, problem: Problem): Result => ({
  index,
  status: problem.status as Result["status"],
  error: problem.ofItem,
})

/** Decodes a thousand vectors in about a second: other requests get a turn after each. */
const decodeItems = (items: ReadonlyArray<unknown>) =>
  Effect.forEach(items, (item) =>
    Effect.zipLeft(
      Effect.sync(() => toInput(item)),
      yieldToEventLoop,
    ),
  )

const changeMany = Effect.fnUntraced(function* (request: HttpServerRequest.HttpServerRequest) {
  const body = yield* onWebRequest(request, (web) => parseBody(web, productsBodyBytes))
  if (!Array.isArray(body) || body.length === 0 || body.length > mostProducts)
    return yield* unprocessable([
      { field: "", detail: `must be a JSON array of 1 to ${mostProducts} products` },
    ])
  const decoded = yield* decodeItems(body)
  const inputs = decoded.flatMap((item) => (Either.isRight(item) ? [item.right] : []))
  const written = (yield* write(inputs))[Symbol.iterator]()
  const results = decoded.map((item, index): Result => {
    if (Either.isLeft(item)) return rejection(index, unprocessable(item.left))
    const { product_id } = item.right
    return Either.match(written.next().value!, {
      onLeft: (error) => ({ ...rejection(index, problemOf(error)), product_id }),
      onRight: (outcome) => ({ index, status: outcome === "created" ? 201 : 200, product_id }),
    })
  })
  const count = (status: number) => results.filter((result) => result.status === status).length
  const [created, changed] = [count(201), count(200)]
  const rejected = results.length - created - changed
  const report: typeof ProductsReport.Type = { created, changed, rejected, results }
  return HttpServerResponse.unsafeJson(report, { status: rejected === 0 ? 200 : 207 })
})

const decodeChange = decodeBody(ProductChangeBody)

/** Raw where a body is read: see decodeBody. */
export const products = HttpApiBuilder.group(api, "products", (handlers) =>
  Effect.map(EmbeddingConfig, ({ dimensions }) =>
    handlers
      .handleRaw("change", ({ path, request }) =>
        Effect.flatMap(decodeChange(request, vectorBytes(dimensions)), (body) =>
          change(path.productId, body),
        ),
      )
      .handle("get", ({ path }) => show(path.productId))
      .handle("remove", ({ path }) => remove(path.productId))
      .handleRaw("changeMany", ({ request }) => changeMany(request)),
  ),
)
