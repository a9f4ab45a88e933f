/** What HttpApi cannot declare, added to its OpenAPI document. */
import type { OpenApi } from "@effect/platform"
import { Record } from "effect"
import type { Scope } from "../AccessTokens.ts"
import { type EventTypes, namePattern } from "../model/EventTypes.ts"
import { described } from "../model/ProblemTypes.ts"

/** Annotations `OpenApi.Transform` of an endpoint. */
type Transform = OpenApi.Transform["Type"]
/** One after the other. */
export const inTurn =
  (...transforms: ReadonlyArray<Transform>): Transform =>
  (operation) =>
    transforms.reduce((changed, transform) => transform(changed), operation)

const idempotencyKey = {
  name: "Idempotency-Key",
  in: "header",
  required: false,
  description: "The same key for the same user answers with the first result, whatever the time",
  schema: { type: "string", minLength: 1, maxLength: 255 },
}
/** Not declared as a header of the endpoint: the typed client would require it. */
export const withIdempotencyKey: Transform = (operation) => ({
  ...operation,
  parameters: [...operation.parameters, idempotencyKey],
})

export const withOptionalBody: Transform = (operation) => ({
  ...operation,
  requestBody: { ...operation.requestBody, required: false },
})

/** An example of the body. */
export const withExample =
  (example: unknown): Transform =>
  (operation) => {
    const content = operation.requestBody?.content["application/json"]
    return content === undefined
      ? operation
      : {
          ...operation,
          requestBody: { ...operation.requestBody, content: { "application/json": { ...content, example } } },
        }
  }

const header = (description: string, type = "string") => ({ description, schema: { type } })
const ifNoneMatch = {
  name: "If-None-Match",
  in: "header",
  required: false,
  description: "An ETag of an earlier answer: 304 if nothing has changed",
  schema: { type: "string" },
}

/**
 * The answer also as numbers in float32. It is not declared as a success of the endpoint: the typed client decodes JSON.
 */
export const withFloat32 =
  (options: { readonly etag: boolean; readonly version: boolean; readonly description: string }): Transform =>
  (operation) => {
    const headers = {
      "x-space": header("Name of the vector space"),
      ...(options.version && { "x-version": header("Version of the embedding", "integer") }),
      ...(options.etag && { ETag: header("Of this form of the answer") }),
    }
    const bytes = { schema: { type: "string", format: "binary", description: options.description } }
    const { 200: success, ...others } = operation.responses
    return {
      ...operation,
      parameters: [...operation.parameters, ...(options.etag ? [ifNoneMatch] : [])],
      responses: {
        200: { ...success, headers, content: { ...success?.content, "application/octet-stream": bytes } },
        ...(options.etag && { 304: { description: "Nothing has changed since the answer with this ETag" } }),
        ...others,
      },
    }
  }

const retryAfter = {
  "Retry-After": {
    description: "Seconds to wait, if something was refused for now",
    schema: { type: "integer" },
  },
}

/** The scopes of each endpoint by its `operationId`. A token needs one of them. */
type Scopes = ReadonlyMap<string, ReadonlyArray<Scope>>

/** Any request may meet a defect. */
const unexpected = {
  description: described(500),
  content: { "application/problem+json": { schema: { $ref: "#/components/schemas/ProblemDocument" } } },
}

const complete = (operation: OpenApi.OpenAPISpecOperation, scopes: Scopes) => ({
  ...operation,
  // `{}`: without API_TOKENS no token is needed.
  security: operation.security.flatMap((scheme) => [
    ...(scopes.get(operation.operationId) ?? []).map((scope) => Record.map(scheme, () => [scope])),
    {},
  ]),
  responses: Record.map({ ...operation.responses, 500: unexpected }, (response, status) =>
    ((status === "429" || status === "503") && "application/problem+json" in (response.content ?? {})) ||
    (status === "207" && operation.operationId === "interactions.bulk")
      ? { ...response, headers: retryAfter }
      : response,
  ),
})

/** Lists the event types of a program where the definition of the API knows only the pattern of their names. */
export const withEventTypes = (document: OpenApi.OpenAPISpec, { all }: EventTypes): unknown => {
  const products = all.filter(({ kind }) => kind === "product")
  const own = products.filter(({ name, route }) => name === route)
  const oneOf = (types: typeof all) => ({ type: "string", enum: types.map(({ name }) => name) })
  return JSON.parse(JSON.stringify(document), (key, value) => {
    if (value?.pattern === namePattern.source) return oneOf(products)
    if (value?.in === "path" && value.name === "type") return { ...value, schema: oneOf(own) }
    // The route for types of one's own.
    return own.length === 0 && key.endsWith("/product/{productId}/{type}") ? undefined : value
  })
}

const text = (description: string) => ({ type: "string", description })
/** Customary fields of metadata. Some generators leave out all fields that have no name. */
const customary = {
  SearchBody: ["device", "channel", "category", "session_id"],
  ProductBody: ["device", "channel", "category", "session_id"],
  RetractionBody: ["reason"],
} as const

const withCustomaryFields = (schemas: OpenApi.OpenAPIComponents["schemas"]) =>
  Record.map(schemas, (schema, name) => {
    const fields: ReadonlyArray<string> = Object.entries(customary).find(([of]) => of === name)?.[1] ?? []
    if (!("properties" in schema) || fields.length === 0) return schema
    const named = Object.fromEntries(fields.map((field) => [field, text("becomes metadata")]))
    return { ...schema, properties: { ...schema.properties, ...named } }
  })

export const completeDocument = (document: OpenApi.OpenAPISpec, scopes: Scopes) => ({
  ...document,
  components: { ...document.components, schemas: withCustomaryFields(document.components.schemas) },
  info: { ...document.info, license: { name: "MIT", identifier: "MIT" } },
  paths: Record.map(
    document.paths,
    (operations: Record.ReadonlyRecord<string, OpenApi.OpenAPISpecOperation>) =>
      Record.map(operations, (operation) => complete(operation, scopes)),
  ),
})
