/** What HttpApi cannot declare, added to its OpenAPI document. */
import type { OpenApi } from "@effect/platform"
import { Record } from "effect"
import type { Scope } from "../AccessTokens.ts"
import { type EventTypes, namePattern } from "../model/EventTypes.ts"

/** Annotations `OpenApi.Transform` of an endpoint. */
type Transform = OpenApi.Transform["Type"]

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

const retryAfter = { "Retry-After": { description: "Seconds to wait", schema: { type: "integer" } } }

/** The scopes of each endpoint by its `operationId`. A token needs one of them. */
type Scopes = ReadonlyMap<string, ReadonlyArray<Scope>>

const complete = (operation: OpenApi.OpenAPISpecOperation, scopes: Scopes) => ({
  ...operation,
  // `{}`: without API_TOKENS no token is needed.
  security: operation.security.flatMap((scheme) => [
    ...(scopes.get(operation.operationId) ?? []).map((scope) => Record.map(scheme, () => [scope])),
    {},
  ]),
  responses: Record.map(operation.responses, (response, status) =>
    (status === "429" || status === "503") && "application/problem+json" in (response.content ?? {})
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

export const completeDocument = (document: OpenApi.OpenAPISpec, scopes: Scopes) => ({
  ...document,
  paths: Record.map(
    document.paths,
    (operations: Record.ReadonlyRecord<string, OpenApi.OpenAPISpecOperation>) =>
      Record.map(operations, (operation) => complete(operation, scopes)),
  ),
})
