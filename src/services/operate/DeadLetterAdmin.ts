/** `failed …`: lists, groups, shows, retries and removes dead letters. Listing consumes nothing. */
import { Effect, Schema, Stream } from "effect"
import type { DeadLetterGroup } from "../api/OperationsApi.ts"
import { content, type DeadLetter, DeadLetters } from "../ports/DeadLetters.ts"

export interface DeadLetterFilter {
  readonly error?: string | undefined
  readonly type?: string | undefined
  readonly user?: string | undefined
  readonly product?: string | undefined
  /** Canonical timestamp of the last failure, inclusive. */
  readonly since?: string | undefined
  /** `x-dead-letter-id` or `message_id`. */
  readonly ids?: ReadonlySet<string> | undefined
}

const orNull = (text: string) => (text === "" ? null : text)

/** A dead letter as listed; `null` where the message or its headers can't be read. */
export const summary = (deadLetter: DeadLetter) => {
  const { event_type, message_id, product_id, user_id } = content(deadLetter)
  return {
    id: orNull(deadLetter.id),
    message_id,
    user_id,
    event_type,
    product_id,
    error: orNull(deadLetter.error),
    message: orNull(deadLetter.message),
    attempts: deadLetter.attempts,
    first_failed_at: orNull(deadLetter.firstFailedAt),
    last_failed_at: orNull(deadLetter.lastFailedAt),
  }
}
export type Summary = ReturnType<typeof summary>

export const matching =
  ({ error, ids, product, since, type, user }: DeadLetterFilter) =>
  (deadLetter: DeadLetter): boolean => {
    if (error !== undefined && deadLetter.error !== error) return false
    if (since !== undefined && !(deadLetter.lastFailedAt >= since)) return false
    if ([ids, product, type, user].every((wanted) => wanted === undefined)) return true
    const { event_type, message_id, product_id, user_id } = content(deadLetter)
    return (
      (ids === undefined || ids.has(deadLetter.id) || (message_id !== null && ids.has(message_id))) &&
      (type === undefined || event_type === type) &&
      (user === undefined || user_id === user) &&
      (product === undefined || product_id === product)
    )
  }

const select = (filter: DeadLetterFilter) =>
  Effect.map(DeadLetters, ({ list }) => Stream.filter(list, matching(filter)))

/** Oldest first. */
export const listDeadLetters = (filter: DeadLetterFilter) =>
  Effect.flatMap(select(filter), (found) =>
    Effect.map(Stream.runCollect(Stream.map(found, summary)), (all): ReadonlyArray<Summary> => [...all]),
  )

export type Group = typeof DeadLetterGroup.Type

/** Dead letters by error, the largest group first. */
export const groupDeadLetters = (filter: DeadLetterFilter) =>
  Effect.flatMap(select(filter), (found) =>
    Stream.runFold(Stream.map(found, summary), new Map<string | null, Group>(), (groups, deadLetter) => {
      const { error, first_failed_at, id, last_failed_at, message, message_id } = deadLetter
      const known = groups.get(error)
      const first = known?.first_failed_at ?? first_failed_at
      return groups.set(error, {
        error,
        count: (known?.count ?? 0) + 1,
        first_failed_at:
          first_failed_at !== null && first !== null && first_failed_at < first ? first_failed_at : first,
        last_failed_at:
          last_failed_at !== null && (known?.last_failed_at ?? "") < last_failed_at
            ? last_failed_at
            : (known?.last_failed_at ?? null),
        example: { id, message_id, message },
      })
    }),
  ).pipe(Effect.map((groups) => [...groups.values()].sort((a, b) => b.count - a.count)))

const utf8 = new TextDecoder("utf-8", { fatal: true })
const bodyOf = (body: Uint8Array) => {
  try {
    return { body: utf8.decode(body), body_base64: null }
  } catch {
    return { body: null, body_base64: Buffer.from(body).toString("base64") }
  }
}

export class DeadLetterNotFound extends Schema.TaggedError<DeadLetterNotFound>()("DeadLetterNotFound", {
  ids: Schema.Array(Schema.String),
}) {
  override get message() {
    return `no dead letter has the id or message_id ${this.ids.join(", ")}`
  }
}

const details = (deadLetter: DeadLetter) => ({
  ...summary(deadLetter),
  retried_from: deadLetter.retriedFrom,
  worker: orNull(deadLetter.worker),
  original_exchange: orNull(deadLetter.originalExchange),
  original_routing_key: orNull(deadLetter.originalRoutingKey),
  ...bodyOf(deadLetter.body),
})

/** Every field, oldest first. */
export const showDeadLetters = (filter: DeadLetterFilter) =>
  Effect.flatMap(select(filter), (found) =>
    Effect.map(Stream.runCollect(found), (all) => [...all].map(details)),
  )

/** The dead letters with this id. A message that failed more than once has several with one `message_id`. */
export const showDeadLetter = (id: string) =>
  Effect.filterOrFail(
    showDeadLetters({ ids: new Set([id]) }),
    (found) => found.length > 0,
    () => new DeadLetterNotFound({ ids: [id] }),
  )

/** The selected dead letters. Fails when one of the ids is unknown, so that a command acts on all ids or on none. */
export const pickDeadLetters = (filter: DeadLetterFilter) =>
  Effect.gen(function* () {
    const picked = yield* listDeadLetters(filter)
    const known = new Set(picked.flatMap(({ id, message_id }) => [id, message_id]))
    const unknown = [...(filter.ids ?? [])].filter((id) => !known.has(id))
    if (unknown.length > 0) return yield* new DeadLetterNotFound({ ids: unknown })
    return picked
  })

export class NotRetried extends Schema.TaggedError<NotRetried>()("NotRetried", { left: Schema.Number }) {
  override get message() {
    return `${this.left} dead letters could not be published and stay in the queue failed`
  }
}

/** Publishes the selected dead letters again and removes each from the queue. */
export const retryDeadLetters = (filter: DeadLetterFilter) =>
  Effect.gen(function* () {
    const { retry } = yield* DeadLetters
    const matches = matching(filter)
    let picked = 0
    const retried = yield* retry((deadLetter) => {
      const isPicked = matches(deadLetter)
      if (isPicked) picked += 1
      return isPicked
    })
    return { picked, retried }
  })

const identity = ({ id, last_failed_at, message_id }: Summary) => `${id}|${message_id}|${last_failed_at}`

/** Removes exactly these dead letters, none that arrived later; answers how many it removed. */
export const removeDeadLetters = (picked: ReadonlyArray<Summary>) =>
  Effect.flatMap(DeadLetters, ({ remove }) => {
    const identities = new Set(picked.map(identity))
    return remove((deadLetter) => identities.has(identity(summary(deadLetter))))
  })
