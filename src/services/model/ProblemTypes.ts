/** The kinds of problems that the API answers with. The `type` of an answer leads to a section of the page /problems. */

interface Kind {
  readonly status: number
  readonly title: string
  readonly meaning: string
  readonly remedy: string
}

const kinds = {
  "malformed-body": {
    status: 400,
    title: "The body cannot be read",
    meaning:
      "The body is not JSON in UTF-8, is not what `Content-Encoding` says, or ended before its length.",
    remedy: "Send one JSON value in UTF-8, without byte-order mark.",
  },
  unauthorized: {
    status: 401,
    title: "A valid token is missing",
    meaning: "The API has tokens (`API_TOKENS`), and the request has none of them.",
    remedy:
      "Send `Authorization: Bearer TOKEN`. Segment's libraries send the token as their write key. If a token was replaced, use the new one.",
  },
  "missing-scope": {
    status: 403,
    title: "The token may not do this",
    meaning: "The token is valid, but has none of the scopes that `detail` names.",
    remedy: "Use a token with one of these scopes, or add the scope to its entry in `API_TOKENS`.",
  },
  "foreign-origin": {
    status: 403,
    title: "The request comes from a place that is not trusted",
    meaning:
      "The API has no tokens. It then refuses web pages of other origins, and on a loopback address every other `Host`.",
    remedy: "Set `API_TOKENS`, or name the origin of the page in `API_CORS_ORIGINS`.",
  },
  "token-in-url": {
    status: 403,
    title: "The token must not be in the URL",
    meaning:
      "`access_token` in the URL is for beacons of web pages: from an origin of `API_CORS_ORIGINS`, with a token that has the scope `write` and no other.",
    remedy: "Send the token in the header `Authorization`.",
  },
  "token-needed-to-destroy": {
    status: 403,
    title: "This needs a token, and the API has none",
    meaning:
      "The request destroys data: it erases a user, removes a product, or retries or removes dead letters. The API has no tokens and can be reached from other machines.",
    remedy:
      "Set `API_TOKENS` to a long random secret and start the API again. Or use the commands `user erase`, `products remove` and `failed`.",
  },
  "no-such-route": {
    status: 404,
    title: "There is nothing at this path",
    meaning: "No route of the API has this path.",
    remedy: "Compare the path with `/docs`. Ids in a path are percent-encoded.",
  },
  "not-found": {
    status: 404,
    title: "The thing asked for does not exist",
    meaning:
      "There is no such product, dead letter or interaction of this user, or the user has no embedding: nobody with this id, no event that is applied yet, or all events are taken back.",
    remedy: "A new user has an embedding some seconds after the first event whose product has a vector.",
  },
  "method-not-allowed": {
    status: 405,
    title: "The path has no such method",
    meaning: "The path exists for other methods, which `Allow` lists.",
    remedy: "Use one of them.",
  },
  "merge-refused": {
    status: 409,
    title: "The merge contradicts earlier ones",
    meaning: "It would close a circle, or `from` is an alias of somebody else already.",
    remedy: "Merge the owner of `from` instead, or leave it: a merge cannot be undone.",
  },
  pruned: {
    status: 410,
    title: "The interaction is pruned",
    meaning: "Its row was removed from the log by `prune`, so it cannot be taken back any more.",
    remedy: "Nothing. Prune later, if refunds come so late.",
  },
  "body-too-large": {
    status: 413,
    title: "The body is too large",
    meaning: "The inflated body exceeds the limit that `detail` names.",
    remedy: "Send fewer items in one request.",
  },
  "unsupported-media-type": {
    status: 415,
    title: "The body has another type or encoding",
    meaning:
      "The body is not declared as JSON in UTF-8, or is compressed by something else than gzip or deflate.",
    remedy: "Send `Content-Type: application/json`.",
  },
  "invalid-input": {
    status: 422,
    title: "Fields are invalid",
    meaning:
      "The request was read, but fields, path or query parameters break a rule; `errors` names each with its rule.",
    remedy: "Correct these fields. The same request never succeeds.",
  },
  "idempotency-key-reused": {
    status: 422,
    title: "The idempotency key belongs to another interaction",
    meaning: "The same user sent this `Idempotency-Key` before, with another body or route.",
    remedy: "Use a new key for each interaction, and the same only to repeat a request.",
  },
  "too-many-requests": {
    status: 429,
    title: "Too many interactions of one user",
    meaning: "The user has more interactions a second than `RATE_LIMIT_PER_USER`.",
    remedy: "Send it again after the seconds that `Retry-After` names.",
  },
  unexpected: {
    status: 500,
    title: "The server failed",
    meaning: "A defect of the program. The log of the server describes it in the line `http.failed`.",
    remedy: "Find the line by the trace id of the answer's `traceparent`, and report it.",
  },
  "no-embedder": {
    status: 501,
    title: "Texts cannot be embedded here",
    meaning: "There is neither `OPENAI_API_KEY`, nor a local model for this `EMBEDDING_DIMENSIONS`.",
    remedy: "Send vectors instead of texts, or set `OPENAI_API_KEY`.",
  },
  "too-many-users": {
    status: 501,
    title: "There are too many users to compare",
    meaning: "Similar users are found by comparing all users, up to the number that `detail` names.",
    remedy: "Export the vectors into a vector index (`sink`), and search there.",
  },
  unavailable: {
    status: 503,
    title: "A server does not answer",
    meaning:
      "A database, the broker or the embedding service that the answer depends on cannot be reached, did not answer in time or is not set up; `detail` names it. With `occurred_at` or an `Idempotency-Key`, a repeated request counts once.",
    remedy:
      "Send it again after the seconds that `Retry-After` names. `/readyz` and `doctor` show what is out.",
  },
  busy: {
    status: 503,
    title: "Too many costly requests at once",
    meaning:
      "Reads of many vectors are answered two at a time, so that recording does not wait for them. Too many of them wait already.",
    remedy: "Send it again after the seconds that `Retry-After` names, and fewer of them at the same time.",
  },
  "operator-needed": {
    status: 503,
    title: "A server refuses, or its data cannot be used",
    meaning:
      "A server lacks a right, or holds data that cannot be read or stored. It stays so until somebody acts.",
    remedy: "Do not repeat the request. Run `user-embeddings doctor`, which says what to correct.",
  },
} as const satisfies Readonly<Record<string, Kind>>

export type ProblemType = keyof typeof kinds
export const problemTypes: Readonly<Record<ProblemType, Kind>> = kinds

const all = Object.entries(problemTypes)

export const pagePath = "/problems"
/** Relative to the address of the API, which serves the page. */
export const uriOf = (type: string): string => `${pagePath}#${type}`
export const uris: ReadonlyArray<string> = all.map(([type]) => uriOf(type))

/** The problems of a status in words. */
export const described = (status: number): string =>
  all
    .filter(([, kind]) => kind.status === status)
    .map(([type, { title }]) => `${title} (type ${uriOf(type)})`)
    .join("; or: ")
