/**
 * `generate`: sends interactions through the HTTP API and watches, in the stores of the configured stack, when each of
 * them has become part of its user's embedding. The time of one runs from sending the request to the first look that
 * finds its id on the user's record: never too short, and too long by a look (some 100 ms) at most.
 */
import { FileSystem } from "@effect/platform"
import { Array as Arr, Clock, Duration, Effect, Fiber, Option, Schema, Stream } from "effect"
import { BulkReport, bulkItems } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as LoadModel from "../../services/history/LoadModel.ts"
import * as AppliedIds from "../../services/model/AppliedIds.ts"
import {
  describeIssues,
  type Interaction,
  type ProductId,
  type UserId,
} from "../../services/model/Interaction.ts"
import { Auditor, type AuditReport } from "../../services/operate/Auditor.ts"
import * as SystemStats from "../../services/operate/SystemStats.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../services/ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { ProductLine, sampleCatalogue } from "./ImportProducts.ts"

export interface LoadOptions {
  readonly users: number
  readonly events: number
  /** Per second; as fast as the API answers when there is none. */
  readonly rate: Option.Option<number>
  readonly seed: number
  readonly start: Option.Option<string>
  readonly bulk: boolean
  readonly check: boolean
  readonly url: string
  readonly token: string | undefined
  readonly products: Option.Option<string>
  /** Told every look. */
  readonly progress: (progress: Progress) => Effect.Effect<void>
}

export interface Progress {
  readonly total: number
  readonly accepted: number
  readonly embedded: number
  readonly depth: number
}

export interface LoadReport {
  readonly sent: number
  /** Recorded by this run. */
  readonly accepted: number
  /** Recorded before, by a run with the same seed and start. */
  readonly duplicates: number
  /** Of those accepted. */
  readonly embedded: number
  /** From the first request to the last answer. */
  readonly seconds: number
  readonly accepted_per_s: number
  readonly event_to_embedding_s: SystemStats.Percentiles
  /** Share of those accepted that were embedded within the limit. */
  readonly embedded_in_time: number
  /** Waiting in the queue, or of this run accepted and not embedded yet, whichever was more. */
  readonly max_queue_depth: number
  readonly audit?: AuditReport
  readonly pass: boolean
}

export const limits = { seconds: 30, share: 0.95, depth: 5_000 } as const

/** The API does not take what it was sent. */
export class NotAccepted extends Schema.TaggedError<NotAccepted>()("NotAccepted", {
  message: Schema.String,
}) {}

const requestsAtOnce = 32
const bulkRequestsAtOnce = 4
const mostPerBulk = bulkItems / 2
const requestDeadline = 15_000
/** How often a request is sent that is not answered, or by 503. */
const mostTries = 30
const lookInterval = Duration.millis(100)
/** What takes longer than this may have left the record for the ledger. */
const ledgerAfterMillis = 2_000
/** Nothing more is waited for when for so long nothing has been embedded. */
const patienceMillis = 60_000
const mostProducts = 1_000

const singly = (
  { event_type, metadata, occurred_at, product_id, search_phrase, user_id }: Interaction,
  routeOf: ReadonlyMap<string, string>,
) =>
  search_phrase !== null
    ? {
        path: `/api/user/${user_id}/search`,
        body: { ...metadata, query: search_phrase, occurred_at },
      }
    : {
        path: `/api/user/${user_id}/product/${product_id}/${routeOf.get(event_type)}`,
        body: { ...metadata, occurred_at },
      }

const together = (some: ReadonlyArray<Interaction>) => ({
  path: "/api/interactions",
  body: some.map(({ message_id: _, product_id, search_phrase, ...item }) => ({
    ...item,
    ...(search_phrase === null ? { product_id } : { search_phrase }),
  })),
})

const decodeProduct = Schema.decode(ProductLine)
const decodeReport = Schema.decodeUnknown(BulkReport)

/** Requests to the API under test. */
const client = ({ token, url }: Pick<LoadOptions, "url" | "token">) => {
  const headers = {
    "content-type": "application/json",
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
  }
  const base = url.replace(/\/+$/, "")
  const send = (method: "POST" | "PUT", path: string, body: unknown) =>
    Effect.tryPromise({
      try: async (signal) => {
        const response = await fetch(`${base}${path}`, {
          method,
          headers,
          body: JSON.stringify(body),
          signal: AbortSignal.any([signal, AbortSignal.timeout(requestDeadline)]),
        })
        return {
          status: response.status,
          text: await response.text(),
          retryAfter: Number(response.headers.get("retry-after") ?? 1) || 1,
        }
      },
      catch: (error) =>
        new NotAccepted({ message: `${base}: ${error instanceof Error ? error.message : error}` }),
    })
  /** Sent until it is answered; what it may have been before is for the caller to tell apart. */
  const insist = (method: "POST" | "PUT", path: string, body: unknown) => {
    const once = (tries: number): Effect.Effect<Answer, NotAccepted> =>
      Effect.matchEffect(send(method, path, body), {
        onFailure: (error) =>
          tries < mostTries ? Effect.zipRight(Effect.sleep("1 second"), once(tries + 1)) : Effect.fail(error),
        onSuccess: ({ retryAfter, status, text }) =>
          status === 503 && tries < mostTries
            ? Effect.zipRight(Effect.sleep(Duration.seconds(retryAfter)), once(tries + 1))
            : status < 300 || status === 429
              ? Effect.succeed({ status, text, retryAfter, again: tries > 1 })
              : Effect.fail(
                  new NotAccepted({ message: `${method} ${base}${path} was answered ${status}: ${text}` }),
                ),
      })
    return once(1)
  }
  return { insist }
}
interface Answer {
  readonly status: number
  readonly text: string
  readonly retryAfter: number
  /** Not the first try: a duplicate may be of an earlier one. */
  readonly again: boolean
}
type Client = ReturnType<typeof client>

/** The products to interact with; those that the system doesn't know yet are put there first. */
const prepareProducts = Effect.fnUntraced(function* (file: Option.Option<string>, { insist }: Client) {
  const products = yield* ProductEmbeddings
  const { space } = yield* PhraseEmbedder
  if (Option.isNone(file)) {
    const stored = yield* Stream.runCollect(Stream.take(products.stream(space), mostProducts))
    if (stored.length > 0) return [...stored].map(({ product_id }) => product_id)
  }
  const files = yield* FileSystem.FileSystem
  const text = yield* files.readFileString(Option.getOrElse(file, () => sampleCatalogue))
  const lines = yield* Effect.forEach(
    text.split("\n").filter((line) => line.trim() !== ""),
    (line, index) =>
      Effect.mapError(
        decodeProduct(line),
        (error) => new NotAccepted({ message: `product ${index + 1} of the file: ${describeIssues(error)}` }),
      ),
  )
  const ids = lines.map(({ product_id }) => product_id)
  if (ids.length === 0) return yield* new NotAccepted({ message: "the file names no product" })
  const known = yield* products.knownSince(ids, space)
  yield* Effect.forEach(
    lines.filter(({ product_id }) => !known.has(product_id)),
    ({ product_id, text, vector, ...names }) =>
      insist("PUT", `/api/product/${product_id}/embedding`, {
        ...names,
        ...(vector === undefined ? { text: text ?? `${names.product_name}, ${names.category}` } : { vector }),
      }),
    { concurrency: 8, discard: true },
  )
  return ids
})

/** What is accepted and not embedded yet: when it was sent, by the prefix of its id. */
class Waiting {
  private readonly byUser = new Map<UserId, Map<string, number>>()
  size = 0

  add({ message_id, user_id }: Interaction, since: number): void {
    const own = this.byUser.get(user_id) ?? new Map<string, number>()
    this.byUser.set(user_id, own.set(AppliedIds.prefix(message_id), since))
    this.size += 1
  }

  get users(): ReadonlyArray<UserId> {
    return [...this.byUser.keys()]
  }

  /** Those that wait since before `until`. */
  older(until: number) {
    return Array.from(this.byUser, ([user_id, own]) => ({
      user_id,
      ids: Array.from(own).flatMap(([id, since]) => (since < until ? [id] : [])),
    })).filter(({ ids }) => ids.length > 0)
  }

  /** Takes out those among `ids`; answers since when they waited. */
  take(user: UserId, ids: ReadonlySet<string>): ReadonlyArray<number> {
    const own = this.byUser.get(user)
    if (own === undefined) return []
    const taken = Array.from(own).filter(([id]) => ids.has(id))
    for (const [id] of taken) own.delete(id)
    if (own.size === 0) this.byUser.delete(user)
    this.size -= taken.length
    return taken.map(([, since]) => since)
  }
}

/** The report; `waited` has the seconds of each that was accepted, `Infinity` where it was not embedded. */
export const judge = (run: {
  readonly sent: number
  readonly accepted: number
  readonly duplicates: number
  readonly seconds: number
  readonly waited: ReadonlyArray<number>
  readonly deepest: number
  readonly audit: AuditReport | undefined
}): LoadReport => {
  const { accepted, audit, deepest, duplicates, seconds, sent, waited } = run
  const inTime = waited.filter((wait) => wait <= limits.seconds).length
  return {
    sent,
    accepted,
    duplicates,
    embedded: waited.filter(Number.isFinite).length,
    seconds,
    accepted_per_s: Math.round((accepted / Math.max(seconds, 0.001)) * 10) / 10,
    event_to_embedding_s: SystemStats.percentiles(waited),
    embedded_in_time: accepted === 0 ? 1 : inTime / accepted,
    max_queue_depth: deepest,
    ...(audit === undefined ? {} : { audit }),
    pass:
      accepted + duplicates === sent &&
      inTime >= limits.share * accepted &&
      deepest < limits.depth &&
      (audit === undefined || audit.missing + audit.extra === 0),
  }
}

export const generateLoad = Effect.fn("generateLoad")(function* (options: LoadOptions) {
  const { eventTypes } = yield* EmbeddingConfig
  const log = yield* InteractionLog
  const queue = yield* InteractionQueue
  const users = yield* UserEmbeddings
  const api = client(options)
  const products: ReadonlyArray<ProductId> = yield* prepareProducts(options.products, api)
  const total = options.users * options.events
  const now = yield* Clock.currentTimeMillis
  const interactions = LoadModel.interactions({
    users: options.users,
    eventsPerUser: options.events,
    seed: options.seed,
    products,
    types: eventTypes.all,
    start: Option.match(options.start, { onNone: () => now - total, onSome: Date.parse }),
  })

  const routeOf = new Map(eventTypes.all.map(({ name, route }) => [name, route]))
  const waiting = new Waiting()
  const waited: Array<number> = []
  let accepted = 0
  let duplicates = 0
  let depth = 0
  let deepest = 0
  let lastSeen = now

  const accept = (some: ReadonlyArray<Interaction>, since: number) => {
    accepted += some.length
    for (const one of some) waiting.add(one, since)
  }

  /** Sends one, or some by the bulk route; what the rate limit holds back is sent again. */
  const submit = (some: ReadonlyArray<Interaction>): Effect.Effect<void, NotAccepted> =>
    Effect.gen(function* () {
      const [first] = some
      if (first === undefined) return
      const since = yield* Clock.currentTimeMillis
      const { body, path } = options.bulk ? together(some) : singly(first, routeOf)
      const { again, retryAfter, status, text } = yield* api.insist("POST", path, body)
      let held: ReadonlyArray<Interaction> = []
      if (status === 429) held = some
      else if (!options.bulk) {
        if (status === 201 || again) accept(some, since)
        else duplicates += 1
      } else {
        const { results } = yield* Effect.mapError(
          decodeReport(JSON.parse(text)),
          ({ message }) => new NotAccepted({ message }),
        )
        const refused = results.find((result) => result.status === 422)
        if (refused !== undefined) return yield* new NotAccepted({ message: JSON.stringify(refused) })
        const by = (wanted: number) => some.filter((_, index) => results[index]?.status === wanted)
        const known = by(200)
        accept(again ? [...by(201), ...known] : by(201), since)
        if (!again) duplicates += known.length
        held = by(429)
      }
      if (held.length > 0) yield* Effect.zipRight(Effect.sleep(Duration.seconds(retryAfter)), submit(held))
    })

  const rate = Option.getOrElse(options.rate, () => Number.POSITIVE_INFINITY)
  const perRequest = options.bulk ? Math.max(1, Math.min(mostPerBulk, Math.floor(rate / 4))) : 1
  const sending = Effect.gen(function* () {
    const begin = yield* Clock.currentTimeMillis
    yield* Effect.forEach(
      Arr.chunksOf(interactions, perRequest),
      (some, index) =>
        Effect.gen(function* () {
          const early = begin + (index * perRequest * 1_000) / rate - (yield* Clock.currentTimeMillis)
          if (early > 0) yield* Effect.sleep(early)
          yield* submit(some)
        }),
      { concurrency: options.bulk ? bulkRequestsAtOnce : requestsAtOnce, discard: true },
    )
    return ((yield* Clock.currentTimeMillis) - begin) / 1_000
  })

  const found = (user: UserId, ids: ReadonlySet<string>, at: number) => {
    const since = waiting.take(user, ids)
    for (const one of since) waited.push((at - one) / 1_000)
    if (since.length > 0) lastSeen = at
  }
  const look = Effect.gen(function* () {
    const inFlight = waiting.size
    const writes = yield* users.lastWrites(waiting.users)
    const at = yield* Clock.currentTimeMillis
    for (const [user, { applied }] of writes) found(user, AppliedIds.toSet(applied), at)
    const old = waiting.older(at - ledgerAfterMillis)
    if (old.length > 0) for (const [user, ids] of yield* users.archived(old)) found(user, ids, at)
    const { main } = yield* queue.depths
    depth = Math.max(main.ready + main.unacked, inFlight)
    deepest = Math.max(deepest, depth)
    yield* options.progress({ total, accepted, embedded: waited.length, depth })
  })

  const seconds = yield* Effect.scoped(
    Effect.gen(function* () {
      let sent = false
      const watching = Effect.gen(function* () {
        while (true) {
          const [took] = yield* Effect.timed(look)
          const at = yield* Clock.currentTimeMillis
          if (sent && (waiting.size === 0 || at - lastSeen > patienceMillis)) return
          // A look at very many users shall not be the load itself.
          yield* Effect.sleep(Duration.max(lookInterval, took))
        }
      })
      const watcher = yield* Effect.forkScoped(watching)
      const seconds = yield* Effect.raceFirst(sending, Effect.zipRight(Fiber.join(watcher), Effect.never))
      const [sample] = interactions
      if (sample !== undefined && (yield* log.existingIds([AppliedIds.prefix(sample.message_id)])).size === 0)
        return yield* new NotAccepted({
          message: `${options.url} records elsewhere: give this command the same RABBITMQ_DSN, MYSQL_URL, MONGODB_URL or DATA_DIR`,
        })
      lastSeen = yield* Clock.currentTimeMillis
      sent = true
      yield* Fiber.join(watcher)
      return seconds
    }),
  )

  const audit = options.check ? yield* Effect.flatMap(Auditor, (auditor) => auditor.audit({})) : undefined
  return judge({
    sent: total,
    accepted,
    duplicates,
    seconds,
    waited: [...waited, ...Array.from({ length: waiting.size }, () => Number.POSITIVE_INFINITY)],
    deepest,
    audit,
  })
})
