/** What the schemas of the contract can't say, added to its OpenAPI document. */
import { JSONSchema, Record } from "effect"
import { ProblemDocument } from "../model/Problem.ts"

interface Operation {
  readonly parameters?: ReadonlyArray<object>
  readonly requestBody?: object
  readonly responses: Readonly<Record<string, object>>
  readonly security?: ReadonlyArray<object>
}
export interface Document {
  readonly components: { readonly schemas: Readonly<Record<string, object>> }
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
}

const problem = {
  description: "What is wrong, as RFC 9457 problem document",
  content: { "application/problem+json": { schema: { $ref: "#/components/schemas/ProblemDocument" } } },
}
const retryLater = {
  ...problem,
  headers: { "Retry-After": { description: "Seconds to wait", schema: { type: "integer" } } },
}
const idempotencyKey = {
  name: "Idempotency-Key",
  in: "header",
  required: false,
  description: "The same key for the same user answers with the first result, whatever the time",
  schema: { type: "string", minLength: 1, maxLength: 255 },
}
const ofBodies = { "400": problem, "413": problem, "415": problem }

/** What the schemas can't say of an operation: its problems, the key, and whether it needs a body. */
const complete = (path: string, method: string, operation: Operation): Operation => {
  const { "400": _, ...responses } = operation.responses
  if (!path.startsWith("/api/")) return { ...operation, security: [], responses }
  const records = method === "post"
  const keyed = records && path.startsWith("/api/user/")
  return {
    ...operation,
    // `{}`: no token, where the API is open.
    security: [{ bearer: [] }, {}],
    ...(keyed ? { parameters: [...(operation.parameters ?? []), idempotencyKey] } : {}),
    ...(path.includes("/product/{productId}/") && records
      ? { requestBody: { ...operation.requestBody, required: false } }
      : {}),
    responses: {
      ...responses,
      ...(operation.requestBody ? ofBodies : {}),
      "401": problem,
      ...(records && path.startsWith("/api/dead-letters/") ? { "403": problem } : {}),
      ...(method === "get" ? { "404": problem } : {}),
      "422": problem,
      ...(keyed ? { "429": retryLater } : {}),
      "503": retryLater,
    },
  }
}

export const completeDocument = ({ components, paths, ...rest }: Document) => {
  const { HttpApiDecodeError, Issue, PropertyKey, ...schemas } = components.schemas
  return {
    ...rest,
    paths: Record.map(paths, (methods, path) =>
      Record.map(methods, (operation, method) => complete(path, method, operation)),
    ),
    components: {
      schemas: { ...schemas, ...JSONSchema.make(ProblemDocument).$defs },
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "Only where API_TOKENS is set" },
      },
    },
  }
}
