/** API_TOKENS: the tokens that the API accepts, and the scopes of each. */
import { Context, Either } from "effect"

export const scopes = ["write", "person", "read", "catalogue", "operate"] as const
export type Scope = (typeof scopes)[number]
const isScope = (word: string): word is Scope => scopes.some((scope) => scope === word)

export interface Token {
  /** Its place in API_TOKENS, from 1. Logs name the token by it. */
  readonly position: number
  readonly scopes: ReadonlyArray<Scope>
  readonly secret: string
}

/**
 * Reads `secret,scope+scope=secret`; the left side says what is wrong. A secret may contain `=`: an entry has scopes only
 * if all before its first `=` are scopes.
 */
export const parseTokens = (list: string): Either.Either<ReadonlyArray<Token>, string> => {
  const tokens = list.split(",").map((text, index): Token => {
    const entry = text.trim()
    const [words = ""] = entry.split("=", 1)
    const given = words.split("+")
    return entry.includes("=") && given.every(isScope)
      ? { position: index + 1, scopes: [...new Set(given)], secret: entry.slice(words.length + 1) }
      : { position: index + 1, scopes, secret: entry }
  })
  const secrets = tokens.map(({ secret }) => secret)
  if (!secrets.every((secret) => /^[!-~]+$/.test(secret)))
    return Either.left(
      `must be tokens of printable ASCII without spaces, separated by commas, each a secret or scope=secret; scopes are ${scopes.join(", ")}, or several joined by +`,
    )
  return new Set(secrets).size === secrets.length
    ? Either.right(tokens)
    : Either.left("has the same secret twice")
}

/**
 * Annotates an endpoint of the API that destroys what no request brings back. Without API_TOKENS only a person on this
 * machine may use it.
 */
export class Destroys extends Context.Reference<Destroys>()("user-embeddings/Destroys", {
  defaultValue: () => false,
}) {}

/** Annotates an endpoint or a group of the API: a token needs one of these scopes. None: open without a token. */
export class RouteScopes extends Context.Tag("user-embeddings/RouteScopes")<
  RouteScopes,
  ReadonlyArray<Scope>
>() {}
