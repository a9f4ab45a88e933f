/** What a client says about the answer: the form that it prefers, and the one that it has. */
import { type Headers, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"
import * as Vector from "../../services/model/Vector.ts"

export const octetStream = "application/octet-stream"

/** The media ranges of an Accept header with their weights. A weight that cannot be read counts as 1. */
const rangesOf = (accept: string): ReadonlyMap<string, number> =>
  new Map(
    accept.split(",").map((range) => {
      const [type = "", ...parameters] = range.split(";").map((part) => part.trim().toLowerCase())
      const weight = parameters.find((parameter) => /^q\s*=/.test(parameter))?.replace(/^q\s*=\s*/, "")
      return [type, weight === undefined || !/^[01](\.\d{0,3})?$/.test(weight) ? 1 : Number(weight)]
    }),
  )

/**
 * Whether a client asks for little-endian float32 numbers instead of JSON. It must name their media type. JSON has
 * precedence if the client names both with the same weight.
 */
export const prefersFloat32 = (accept = ""): boolean => {
  const ranges = rangesOf(accept)
  const bytes = ranges.get(octetStream) ?? 0
  const json = ranges.get("application/json")
  if (json !== undefined) return bytes > json
  return bytes > 0 && bytes >= (ranges.get("application/*") ?? ranges.get("*/*") ?? 0)
}

/** Whether the client has the representation with this ETag. If-None-Match ignores whether tags are weak (RFC 9110, 13.1.2). */
export const hasMatch = (ifNoneMatch: string | undefined, etag: string): boolean => {
  if (ifNoneMatch === undefined) return false
  if (ifNoneMatch.trim() === "*") return true
  const opaque = etag.replace(/^W\//, "")
  return ifNoneMatch.match(/"[^"]*"/g)?.some((tag) => tag === opaque) === true
}

/** The answer, or 304 if the client has it. Without an ETag it is always sent. */
export const unlessMatched = <E, R>(
  headers: Readonly<Record<string, string>> & { readonly etag?: string },
  respond: (headers: Headers.Input) => Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>,
) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) =>
    headers.etag !== undefined && hasMatch(request.headers["if-none-match"], headers.etag)
      ? Effect.succeed(HttpServerResponse.empty({ status: 304, headers }))
      : respond(headers),
  )

export const float32Response = (vector: Float32Array, headers: Headers.Input) =>
  Effect.succeed(HttpServerResponse.uint8Array(Vector.toBytes(vector), { contentType: octetStream, headers }))
