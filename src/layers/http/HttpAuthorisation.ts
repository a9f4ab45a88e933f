/** API_TOKENS: who may use the API. */
import { createHash, timingSafeEqual } from "node:crypto"
import { Effect, Option, Redacted } from "effect"
import * as Settings from "../../services/Settings.ts"

const digest = (text: string) => createHash("sha256").update(text).digest()

const tokensOf = (list: Redacted.Redacted) =>
  Redacted.value(list)
    .split(",")
    .map((token) => token.trim())
    .filter((token) => token !== "")
    .map(digest)

/** Whether the header holds one of the tokens; takes the same time for every header. */
const hasToken = (tokens: ReadonlyArray<Buffer>, header: string | undefined): boolean => {
  const given = digest(/^Bearer (.+)$/i.exec(header ?? "")?.[1] ?? "")
  return tokens.reduce((found, token) => timingSafeEqual(token, given) || found, false)
}

/** Whether a header `Authorization` gives access. Without API_TOKENS every request has access. */
export const authorisation = Effect.map(Settings.API_TOKENS, (list) => {
  const tokens = Option.map(list, tokensOf)
  return (header: string | undefined): boolean => Option.isNone(tokens) || hasToken(tokens.value, header)
})
