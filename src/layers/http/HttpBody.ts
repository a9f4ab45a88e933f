/** Reads a request's JSON body within a limit; everything that is wrong with it is a {@link Problem}. */
import type { HttpServerRequest } from "@effect/platform"
import { Effect, Either } from "effect"
import { Problem } from "../../services/model/Problem.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

/** The connection closes, for the rest of the body is not read. */
const tooLarge = (limit: number) =>
  new Problem({
    status: 413,
    detail: `the body must be at most ${limit} bytes`,
    headers: { connection: "close" },
  })
const unsupported = (detail: string) => new Problem({ status: 415, detail })

/** Why a body sent so can't be read, or `undefined` when it can. */
const refused = ({ headers }: Request): Problem | undefined => {
  const contentType = headers.get("content-type") ?? ""
  if (contentType !== "application/json") {
    const [type = "", ...parameters] = contentType.toLowerCase().split(";")
    if (!/^application\/([\w.-]+\+)?json$/.test(type.trim()))
      return unsupported("the body must be sent as content-type application/json")
    const charset = parameters.map((text) => text.trim()).find((text) => text.startsWith("charset="))
    if (charset !== undefined && !/^charset="?utf-?8"?$/.test(charset))
      return unsupported("the body must be in UTF-8")
  }
  return (headers.get("content-encoding") ?? "identity") === "identity"
    ? undefined
    : unsupported("the body must be sent without content-encoding")
}

/** All bytes, without trusting the announced length. */
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
      : new Problem({ status: 400, detail: "the body could not be read to its end" })
  }
}

const parse = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(utf8.decode(bytes))
  } catch {
    throw new Problem({ status: 400, detail: "the body is not JSON in UTF-8" })
  }
}

/** The parsed body; `undefined` when there is none. Rejects with a {@link Problem}. */
export const parseBody = async (request: Request, limit: number): Promise<unknown> => {
  const { headers } = request
  if (!headers.has("content-length") && !headers.has("transfer-encoding")) return undefined
  const bytes = await readBytes(request, limit)
  if (bytes.byteLength === 0) return undefined
  const problem = refused(request)
  if (problem !== undefined) throw problem
  return parse(bytes)
}

/** The same for handlers of the API; our server's requests are web requests. */
export const readJson = (
  { source }: HttpServerRequest.HttpServerRequest,
  limit: number,
): Effect.Effect<unknown, Problem> =>
  source instanceof Request
    ? Effect.flatten(
        Effect.promise(() =>
          parseBody(source, limit).then(
            (body): Either.Either<unknown, Problem> => Either.right(body),
            (error) => (error instanceof Problem ? Either.left(error) : Promise.reject(error)),
          ),
        ),
      )
    : Effect.dieMessage("not a web request")
