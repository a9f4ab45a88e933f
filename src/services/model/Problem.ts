/** RFC 9457: what is wrong with a request. */
import { Schema } from "effect"
import { type ProblemType, problemTypes, uriOf, uris } from "./ProblemTypes.ts"

export const FieldIssue = Schema.Struct({
  /** A dotted path in the body, a path parameter or a header; empty for the whole body. */
  field: Schema.String,
  detail: Schema.String,
}).annotations({ identifier: "FieldIssue" })
export type FieldIssue = typeof FieldIssue.Type

const type = Schema.String.annotations({
  jsonSchema: {
    type: "string",
    format: "uri-reference",
    description: `The kind of the problem, as a URI relative to the address of the API: ${uris.join(", ")}`,
  },
})

/** The body: `application/problem+json`. */
export const ProblemDocument = Schema.Struct({
  type,
  title: Schema.String,
  status: Schema.Number,
  detail: Schema.String,
  errors: Schema.optional(Schema.Array(FieldIssue)),
}).annotations({ identifier: "ProblemDocument" })

/** Why an item of a request with many items is rejected. Its status is in the result of the item. */
export const ItemProblem = Schema.Struct({
  type,
  detail: Schema.String,
  errors: Schema.optional(Schema.Array(FieldIssue)),
}).annotations({ identifier: "ItemProblem" })

interface More {
  readonly errors?: ReadonlyArray<FieldIssue>
  readonly headers?: Readonly<Record<string, string>>
}

export class Problem extends Schema.TaggedError<Problem>()("Problem", {
  ...ProblemDocument.fields,
  headers: Schema.optional(Schema.Record({ key: Schema.String, value: Schema.String })),
}) {
  static of(type: ProblemType, detail: string, more: More = {}): Problem {
    const { status, title } = problemTypes[type]
    return new Problem({ type: uriOf(type), title, status, detail, ...more })
  }

  get document(): typeof ProblemDocument.Type {
    const { detail, errors, status, title, type } = this
    return { type, title, status, detail, ...(errors ? { errors } : {}) }
  }

  get ofItem(): typeof ItemProblem.Type {
    const { detail, errors, type } = this
    return { type, detail, ...(errors ? { errors } : {}) }
  }
}

const maxLevels = 64
const maxProperties = 1_000

/**
 * Why a parsed body is not given to a schema: recursion would exhaust the stack, or the time to find all its issues
 * would block the process.
 */
export const shapeProblem = (json: unknown): string | undefined => {
  let properties = 0
  let level = [json]
  for (let depth = 0; level.length > 0; depth++) {
    const objects = level.filter((value) => typeof value === "object" && value !== null)
    if (depth === maxLevels && objects.length > 0) return `must be nested at most ${maxLevels} levels deep`
    level = []
    for (const value of objects) {
      const children: ReadonlyArray<unknown> = Array.isArray(value) ? value : Object.values(Object(value))
      if (!Array.isArray(value)) properties += children.length
      if (properties > maxProperties) return `must have at most ${maxProperties} properties`
      for (const child of children) if (typeof child === "object" && child !== null) level.push(child)
    }
  }
  return undefined
}

/** An issue of a schema, worded for clients. */
export const fieldIssue = ({ field, problem }: { readonly field: string; readonly problem: string }) => {
  if (problem.startsWith("is unexpected")) return { field, detail: "is not a known field" }
  if (problem.endsWith("actual undefined")) return { field, detail: "is missing" }
  return { field, detail: problem }
}

/** 422, naming every wrong field. */
export const unprocessable = (
  errors: ReadonlyArray<FieldIssue>,
  type: ProblemType = "invalid-input",
): Problem => {
  const words = errors.map(({ detail, field }) => (field === "" ? detail : `${field}: ${detail}`))
  return Problem.of(type, words.join("; "), { errors })
}
