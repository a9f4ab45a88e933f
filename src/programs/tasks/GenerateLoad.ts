/**
 * `generate`: sends interactions through the HTTP API and watches the stores of the configured stack until each of them
 * is part of its user's embedding. The time measured runs from sending the request to the first check that finds the id
 * on the user's record, so it is too long by at most one check (about 100 ms) and never too short.
 */
import { Chunk, Clock, Duration, Effect, Fiber, Option, Schema, Stream } from "effect"
import { BulkReport, bulkItems } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as LoadModel from "../../services/history/LoadModel.ts"
import * as AppliedIds from "../../services/model/AppliedIds.ts"
import { routeOf } from "../../services/model/EventTypes.ts"
import type { Interaction, ProductId, UserId } from "../../services/model/Interaction.ts"
import { Auditor, type AuditReport } from "../../services/operate/Auditor.ts"
import * as SystemStats from "../../services/operate/SystemStats.ts"
import { InteractionLog } from "../../services/ports/InteractionLog.ts"
import { InteractionQueue } from "../../services/ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { textOf } from "../../services/recommend/ProductWriter.ts"
import { productLines, sampleCatalogue } from "./ImportProducts.ts"

export interface LoadOptions {
  readonly users: number
  readonly events: number
  /** Events per second; default: as fast as the API answers. */
  readonly rate: Option.Option<number>
  readonly seed: number
  readonly start: Option.Option<string>
  readonly bulk: boolean
  readonly check: boolean
  readonly url: string
  readonly token: string | undefined
  readonly products: Option.Option<string>
  /** Called after each check. */
  readonly progress: (progress: Progress) => Effect.Effect<void>
}

export interface Progress {
  readonly total: number
  readonly accepted: number
  readonly embedded: number
  readonly depth: number
}

export const limits = { seconds: 30, share: 0.95, depth: 5_000 } as const

export class NotAccepted extends Schema.TaggedError<NotAccepted>()("NotAccepted", {
  message: Schema.String,
}) {}

const requestsAtOnce = 32
const bulkRequestsAtOnce = 4
const mostPerBulk = bulkItems / 2
const requestDeadline = 15_000
/** For a request without a response, or with a 503. */
const mostTries = 30
const checkInterval = Duration.millis(100)
/** After this long an id may have moved from the record to the overflow. */
const overflowAfterMillis = 2_000
/** The run ends when nothing has been embedded for this long. */
const stalledAfterMillis = 60_000
const mostProducts = 1_000

const toRequest = ({ event_type, metadata, occurred_at, product_id, search_phrase, user_id }: Interaction) =>
  search_phrase !== null
    ? { path: `/api/user/${user_id}/search`, body: { ...metadata, query: search_phrase, occurred_at } }
    : {
        path: `/api/user/${user_id}/product/${product_id}/${routeOf(event_type)}`,
        body: { ...metadata, occurred_at },
      }

const toBulkRequest = (some: ReadonlyArray<Interaction>) => ({
  path: "/api/interactions",
  body: some.map(({ message_id: _, product_id, search_phrase, ...item }) => ({
    ...item,
    ...(search_phrase === null ? { product_id } : { search_phrase }),
  })),
})

const decodeReport = Schema.decodeUnknown(BulkReport)

interface ApiResponse {
  readonly status: number
  readonly text: string
  readonly retryAfter: number
  /** Not the first try, so a duplicate may come from an earlier try. */
  readonly retried: boolean
}

const makeClient = ({ token, url }: Pick<LoadOptions, "url" | "token">) => {
  const headers = {
    "content-type": "application/json",
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
  }
  const base = url.replace(/\/+$/, "")
  const sendOnce = (method: "POST" | "PUT", path: string, body: unknown) =>
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
  /** Tries again without a response and on 503; 429 is a response. */
  const send = (
    method: "POST" | "PUT",
    path: string,
    body: unknown,
    tries = 1,
  ): Effect.Effect<ApiResponse, NotAccepted> => {
    const again = (seconds: number) =>
      Effect.zipRight(Effect.sleep(Duration.seconds(seconds)), send(method, path, body, tries + 1))
    return Effect.matchEffect(sendOnce(method, path, body), {
      onFailure: (error) => (tries < mostTries ? again(1) : Effect.fail(error)),
      onSuccess: (response) => {
        const { retryAfter, status, text } = response
        if (status === 503 && tries < mostTries) return again(retryAfter)
        if (status < 300 || status === 429) return Effect.succeed({ ...response, retried: tries > 1 })
        return Effect.fail(
          new NotAccepted({ message: `${method} ${base}${path} was answered ${status}: ${text}` }),
        )
      },
    })
  }
  return send
}
type Send = ReturnType<typeof makeClient>

/** The products to interact with. Stores those of the file that are not stored yet. */
const prepareProducts = Effect.fnUntraced(function* (file: Option.Option<string>, send: Send) {
  const products = yield* ProductEmbeddings
  const { space } = yield* PhraseEmbedder
  if (Option.isNone(file)) {
    const stored = yield* products.stream(space).pipe(
      Stream.filter(({ available }) => available),
      Stream.take(mostProducts),
      Stream.runCollect,
    )
    if (stored.length > 0) return [...stored].map(({ product_id }) => product_id)
  }
  const path = Option.getOrElse(file, () => sampleCatalogue)
  const lines = yield* productLines(path).pipe(
    Stream.mapEffect(({ line, product }) =>
      Effect.mapError(product, (reason) => new NotAccepted({ message: `${path}, line ${line}: ${reason}` })),
    ),
    Stream.runCollect,
    Effect.map(Chunk.toReadonlyArray),
  )
  const ids = lines.map(({ product_id }) => product_id)
  if (ids.length === 0) return yield* new NotAccepted({ message: "the file has no product" })
  const known = yield* products.knownSince(ids, space)
  yield* Effect.forEach(
    lines.filter(({ product_id }) => !known.has(product_id)),
    (line) => {
      const { product_id, text: _, ...product } = line
      const source = line.vector === undefined ? { text: textOf(line) } : {}
      return send("PUT", `/api/product/${product_id}`, { ...product, ...source })
    },
    { concurrency: 8, discard: true },
  )
  return ids
})

/** What was accepted so far, and how much of it is embedded. */
class LoadRun {
  accepted = 0
  duplicates = 0
  depth = 0
  maxDepth = 0
  /** Seconds that each embedded interaction waited. */
  readonly waits: Array<number> = []
  /** Accepted interactions that are not embedded yet. */
  pending = 0
  /** When each of them was sent, by user and by the prefix of the id. */
  readonly sentAt = new Map<UserId, Map<string, number>>()

  constructor(
    readonly send: Send,
    readonly options: LoadOptions,
    readonly interactions: ReadonlyArray<Interaction>,
    public lastEmbeddedAt: number,
  ) {}

  accept(interactions: ReadonlyArray<Interaction>, sentAt: number): void {
    this.accepted += interactions.length
    this.pending += interactions.length
    for (const { message_id, user_id } of interactions) {
      const own = this.sentAt.get(user_id) ?? new Map<string, number>()
      this.sentAt.set(user_id, own.set(AppliedIds.prefix(message_id), sentAt))
    }
  }

  sentBefore(until: number) {
    return Array.from(this.sentAt, ([user_id, own]) => ({
      user_id,
      ids: Array.from(own).flatMap(([id, sentAt]) => (sentAt < until ? [id] : [])),
    })).filter(({ ids }) => ids.length > 0)
  }

  /** `ids` were found applied; some of them may belong to other runs. */
  embed(user: UserId, ids: ReadonlySet<string>, now: number): void {
    const own = this.sentAt.get(user)
    if (own === undefined) return
    const found = Array.from(own).filter(([id]) => ids.has(id))
    for (const [id, sentAt] of found) {
      own.delete(id)
      this.waits.push((now - sentAt) / 1_000)
    }
    if (own.size === 0) this.sentAt.delete(user)
    if (found.length > 0) this.lastEmbeddedAt = now
    this.pending -= found.length
  }
}

/** `waits` has the seconds of each accepted interaction, `Infinity` where it was not embedded. */
export const toReport = (
  run: Readonly<Pick<LoadRun, "accepted" | "duplicates" | "maxDepth">> & {
    readonly sent: number
    readonly seconds: number
    readonly waits: ReadonlyArray<number>
    readonly audit: AuditReport | undefined
  },
) => {
  const { accepted, audit, duplicates, maxDepth, seconds, sent, waits } = run
  const inTime = waits.filter((wait) => wait <= limits.seconds).length
  return {
    sent,
    accepted,
    /** Recorded before by a run with the same seed and start. */
    duplicates,
    embedded: waits.filter(Number.isFinite).length,
    /** From the first request to the last response. */
    seconds,
    accepted_per_s: Math.round((accepted / Math.max(seconds, 0.001)) * 10) / 10,
    event_to_embedding_s: SystemStats.percentiles(waits),
    /** Share of the accepted interactions that were embedded within the limit. */
    embedded_in_time: accepted === 0 ? 1 : inTime / accepted,
    /** Messages in the queue, or accepted interactions not yet embedded, whichever was more. */
    max_queue_depth: maxDepth,
    ...(audit === undefined ? {} : { audit }),
    pass:
      accepted + duplicates === sent &&
      inTime >= limits.share * accepted &&
      maxDepth < limits.depth &&
      (audit === undefined || audit.missing + audit.extra === 0),
  }
}
export type LoadReport = ReturnType<typeof toReport>

/** Sends one interaction, or several in bulk. Sends again after a pause those refused by the rate limit. */
const submit = (run: LoadRun, some: ReadonlyArray<Interaction>): Effect.Effect<void, NotAccepted> =>
  Effect.gen(function* () {
    const { bulk } = run.options
    const [first] = some
    if (first === undefined) return
    const now = yield* Clock.currentTimeMillis
    const { body, path } = bulk ? toBulkRequest(some) : toRequest(first)
    const { retried, retryAfter, status, text } = yield* run.send("POST", path, body)
    let limited: ReadonlyArray<Interaction> = []
    if (status === 429) limited = some
    else if (!bulk) {
      if (status === 201 || retried) run.accept(some, now)
      else run.duplicates += 1
    } else {
      const { results } = yield* Effect.mapError(
        decodeReport(JSON.parse(text)),
        ({ message }) => new NotAccepted({ message }),
      )
      const refused = results.find((result) => result.status === 422)
      if (refused !== undefined) return yield* new NotAccepted({ message: JSON.stringify(refused) })
      const withStatus = (wanted: number) => some.filter((_, index) => results[index]?.status === wanted)
      const duplicates = withStatus(200)
      run.accept(retried ? [...withStatus(201), ...duplicates] : withStatus(201), now)
      if (!retried) run.duplicates += duplicates.length
      limited = withStatus(429)
    }
    if (limited.length > 0)
      yield* Effect.zipRight(Effect.sleep(Duration.seconds(retryAfter)), submit(run, limited))
  })

/** Like `Arr.chunksOf`, which copies the rest for every chunk: of 200,000 events that blocks the process for a minute. */
export function* slices<A>(all: ReadonlyArray<A>, size: number): Iterable<ReadonlyArray<A>> {
  for (let from = 0; from < all.length; from += size) yield all.slice(from, from + size)
}

/** Sends all interactions at the wanted rate; answers the seconds it took. */
const sendAll = Effect.fnUntraced(function* (run: LoadRun) {
  const { bulk, ...options } = run.options
  const rate = Option.getOrElse(options.rate, () => Number.POSITIVE_INFINITY)
  const perRequest = bulk ? Math.max(1, Math.min(mostPerBulk, Math.floor(rate / 4))) : 1
  const begin = yield* Clock.currentTimeMillis
  yield* Effect.forEach(
    slices(run.interactions, perRequest),
    (some, index) =>
      Effect.gen(function* () {
        const early = begin + (index * perRequest * 1_000) / rate - (yield* Clock.currentTimeMillis)
        if (early > 0) yield* Effect.sleep(early)
        yield* submit(run, some)
      }),
    { concurrency: bulk ? bulkRequestsAtOnce : requestsAtOnce, discard: true },
  )
  return ((yield* Clock.currentTimeMillis) - begin) / 1_000
})

const check = Effect.fnUntraced(function* (run: LoadRun) {
  const queue = yield* InteractionQueue
  const users = yield* UserEmbeddings
  const pending = run.pending
  const writes = yield* users.lastWrites([...run.sentAt.keys()])
  const now = yield* Clock.currentTimeMillis
  for (const [user, { applied }] of writes) run.embed(user, AppliedIds.toSet(applied), now)
  const old = run.sentBefore(now - overflowAfterMillis)
  const entries = old.map((entry) => ({ ...entry, generation: writes.get(entry.user_id)?.generation ?? 0 }))
  if (old.length > 0)
    for (const [user, ids] of yield* users.findInLedger("applied", entries)) run.embed(user, ids, now)
  const { main } = yield* queue.depths
  run.depth = Math.max(main.ready + main.unacked, pending)
  run.maxDepth = Math.max(run.maxDepth, run.depth)
})

/** An API that records into other stores would make this command wait in vain. */
const requireSameStores = Effect.fnUntraced(function* (url: string, [sample]: ReadonlyArray<Interaction>) {
  const log = yield* InteractionLog
  if (sample === undefined) return
  const found = yield* log.existingIds([AppliedIds.prefix(sample.message_id)])
  if (found.size === 0)
    return yield* new NotAccepted({
      message: `${url} uses other stores than this command: give it the same RABBITMQ_DSN, MYSQL_URL, MONGODB_URL or DATA_DIR`,
    })
})

/** Sends all interactions, and checks until they are embedded or nothing moves; answers the seconds of sending. */
const sendAndWatch = Effect.fnUntraced(function* (run: LoadRun) {
  const { interactions, options } = run
  let sent = false
  const watching = Effect.gen(function* () {
    while (true) {
      const [took] = yield* Effect.timed(check(run))
      const { accepted, depth, waits } = run
      yield* options.progress({ total: interactions.length, accepted, embedded: waits.length, depth })
      const now = yield* Clock.currentTimeMillis
      if (sent && (run.pending === 0 || now - run.lastEmbeddedAt > stalledAfterMillis)) return
      // With very many users a check takes long and must not become the load itself.
      yield* Effect.sleep(Duration.max(checkInterval, took))
    }
  })
  const watcher = yield* Effect.forkScoped(watching)
  const seconds = yield* Effect.raceFirst(sendAll(run), Effect.zipRight(Fiber.join(watcher), Effect.never))
  yield* requireSameStores(options.url, interactions)
  run.lastEmbeddedAt = yield* Clock.currentTimeMillis
  sent = true
  yield* Fiber.join(watcher)
  return seconds
}, Effect.scoped)

export const generateLoad = Effect.fn("generateLoad")(function* (options: LoadOptions) {
  const { eventTypes } = yield* EmbeddingConfig
  const send = makeClient(options)
  const products: ReadonlyArray<ProductId> = yield* prepareProducts(options.products, send)
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
  const run = new LoadRun(send, options, interactions, now)
  const seconds = yield* sendAndWatch(run)
  const audit = options.check ? yield* Effect.flatMap(Auditor, (auditor) => auditor.audit({})) : undefined
  const { accepted, duplicates, maxDepth, pending, waits } = run
  const unembedded = Array.from({ length: pending }, () => Number.POSITIVE_INFINITY)
  return toReport({
    sent: total,
    accepted,
    duplicates,
    seconds,
    waits: waits.concat(unembedded),
    maxDepth,
    audit,
  })
})
