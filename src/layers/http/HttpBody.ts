/** Reads the JSON body of a request within a limit. Everything that is wrong with it is a {@link Problem}. */
import { promisify } from "node:util"
import { unzip } from "node:zlib"
import type { HttpServerRequest } from "@effect/platform"
import { Effect, Either, Schema } from "effect"
import { issues } from "../../services/model/Interaction.ts"
import { fieldIssue, Problem, shapeProblem, unprocessable } from "../../services/model/Problem.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

/** Closes the connection, because the rest of the body is not read. */
const tooLarge = (limit: number) =>
  Problem.of("body-too-large", `the body must be at most ${limit} bytes`, {
    headers: { connection: "close" },
  })
const unsupported = (detail: string) => Problem.of("unsupported-media-type", detail)

const mediaTypeProblem = ({ headers }: Request, others: ReadonlyArray<string>): Problem | undefined => {
  const contentType = headers.get("content-type") ?? ""
  if (contentType !== "application/json") {
    const [type = "", ...parameters] = contentType.toLowerCase().split(";")
    if (!others.includes(type.trim()) && !/^application\/([\w.-]+\+)?json$/.test(type.trim()))
      return unsupported("the body must be sent as content-type application/json")
    const charset = parameters.map((text) => text.trim()).find((text) => text.startsWith("charset="))
    if (charset !== undefined && !/^charset="?utf-?8"?$/.test(charset))
      return unsupported("the body must be in UTF-8")
  }
  return undefined
}

const inflate = promisify(unzip)

/** The inflated bytes. They are counted while they are inflated, because a few bytes can become very many. */
const decoded = async (bytes: Uint8Array, encoding: string, limit: number): Promise<Uint8Array> => {
  if (encoding === "identity") return bytes
  if (!/^((x-)?gzip|deflate)$/.test(encoding))
    throw unsupported("the body must be sent without content-encoding, or with gzip or deflate")
  try {
    return await inflate(bytes, { maxOutputLength: limit })
  } catch (error) {
    if (error instanceof RangeError) throw tooLarge(limit)
    throw Problem.of("malformed-body", `the body is not ${encoding}`)
  }
}

/** All bytes of the body. Content-Length is not trusted. */
const readBytes = async (request: Request, limit: number): Promise<Uint8Array> => {
  const announced = Number(request.headers.get("content-length") ?? Number.NaN)
  if (announced > limit) throw tooLarge(limit)
  try {
    if (announced <= limit) return await request.bytes()
    const parts: Array<Uint8Array> = []
    let length = 0
    for await (const part of request.body ?? []) {
      parts.push(part)
      length += part.byteLength
      if (length > limit) throw tooLarge(limit)
    }
    return Buffer.concat(parts)
  } catch (error) {
    throw error instanceof Problem
      ? error
      : Problem.of("malformed-body", "the body could not be read to its end")
  }
}

const parse = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(utf8.decode(bytes))
  } catch {
    throw Problem.of("malformed-body", "the body is not JSON in UTF-8")
  }
}

/**
 * The parsed body; `undefined` without one. Rejects with a {@link Problem}. `others`: further content types as which JSON
 * may be sent.
 */
export const parseBody = async (
  request: Request,
  limit: number,
  others: ReadonlyArray<string> = [],
): Promise<unknown> => {
  const { headers } = request
  if (!headers.has("content-length") && !headers.has("transfer-encoding")) return undefined
  const bytes = await readBytes(request, limit)
  if (bytes.byteLength === 0) return undefined
  const problem = mediaTypeProblem(request, others)
  if (problem !== undefined) throw problem
  return parse(await decoded(bytes, headers.get("content-encoding")?.toLowerCase() ?? "identity", limit))
}

/**
 * Runs `read` on the web request, which HttpServer.ts passes on. `read` rejects with a {@link Problem}; any
 * other rejection is a defect.
 */
export const onWebRequest = <A>(
  { source }: HttpServerRequest.HttpServerRequest,
  read: (request: Request) => Promise<A>,
): Effect.Effect<A, Problem> =>
  source instanceof Request
    ? Effect.tryPromise(() => read(source)).pipe(
        Effect.catchAll(({ error }) => (error instanceof Problem ? error : Effect.die(error))),
      )
    : Effect.dieMessage("the request is not a web request")

/**
 * Reads and decodes the body of a raw handler. HttpApi itself reads a body without limit and names only the
 * first wrong field.
 */
export const decodeBody = <A, I>(schema: Schema.Schema<A, I>) => {
  const decode = Schema.decodeUnknownEither(schema, { errors: "all", onExcessProperty: "error" })
  return (request: HttpServerRequest.HttpServerRequest, limit: number) =>
    Effect.flatMap(
      onWebRequest(request, (web) => parseBody(web, limit)),
      (body = {}) => {
        const problem = shapeProblem(body)
        if (problem !== undefined) return unprocessable([{ field: "", detail: problem }])
        return Either.mapLeft(decode(body), (error) => unprocessable(issues(error).map(fieldIssue)))
      },
    )
}
