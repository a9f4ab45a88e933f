/** Reads a request's JSON body within a limit; everything that is wrong with it is a {@link Problem}. */
import type { HttpServerRequest } from "@effect/platform"
import { Effect, Stream } from "effect"
import { Problem } from "../services/Problem.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

const tooLarge = (limit: number) =>
  new Problem({ status: 413, detail: `the body must be at most ${limit} bytes` })
const unreadable = () => new Problem({ status: 400, detail: "the body could not be read to its end" })

/** All bytes, without trusting the announced length. */
const readBytes = (request: HttpServerRequest.HttpServerRequest, limit: number) =>
  Effect.suspend(() => {
    const announced = Number(request.headers["content-length"] ?? Number.NaN)
    if (announced > limit) return Effect.fail(tooLarge(limit))
    if (announced <= limit)
      return Effect.map(Effect.mapError(request.arrayBuffer, unreadable), (bytes) => new Uint8Array(bytes))
    const parts: Array<Uint8Array> = []
    let length = 0
    return Stream.runForEach(Stream.mapError(request.stream, unreadable), (part) => {
      parts.push(part)
      length += part.byteLength
      return length > limit ? Effect.fail(tooLarge(limit)) : Effect.void
    }).pipe(Effect.map(() => new Uint8Array(Buffer.concat(parts))))
  })

/** The parsed body; `undefined` when there is none. */
export const readJson = (
  request: HttpServerRequest.HttpServerRequest,
  limit: number,
): Effect.Effect<unknown, Problem> =>
  Effect.gen(function* () {
    const hasBody =
      request.headers["content-length"] !== undefined || request.headers["transfer-encoding"] !== undefined
    const bytes = hasBody ? yield* readBytes(request, limit) : new Uint8Array(0)
    if (bytes.byteLength === 0) return undefined
    const type = (request.headers["content-type"] ?? "").split(";")[0]!.trim().toLowerCase()
    if (type !== "application/json" && !/^application\/[\w.-]+\+json$/.test(type))
      return yield* new Problem({
        status: 415,
        detail: "the body must be sent as content-type application/json",
      })
    return yield* Effect.try({
      try: (): unknown => JSON.parse(utf8.decode(bytes)),
      catch: () => new Problem({ status: 400, detail: "the body is not JSON in UTF-8" }),
    })
  })
