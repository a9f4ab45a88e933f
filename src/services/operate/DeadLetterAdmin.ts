/** `failed …`: dead letters looked at, grouped, retried and removed. Looking consumes nothing. */
import { Effect, Schema, Stream } from "effect"
import type { DeadLetterGroup } from "../api/OperationsApi.ts"
import { content, type DeadLetter, DeadLetters } from "../ports/DeadLetters.ts"

/** What all letters have that are meant; an absent field means any. */
export interface DeadLetterFilter {
  readonly error?: string | undefined
  readonly type?: string | undefined
  readonly user?: string | undefined
  /** Canonical timestamp of the last failure, inclusive. */
  readonly since?: string | undefined
  /** `x-dead-letter-id` or `message_id`. */
  readonly ids?: ReadonlySet<string> | undefined
}

const orNull = (text: string) => (text === "" ? null : text)

/** A letter as listed; `null` where the message or its headers can't be read. */
export const summary = (letter: DeadLetter) => {
  const { event_type, message_id, user_id } = content(letter)
  return {
    id: orNull(letter.id),
    message_id,
    user_id,
    event_type,
    error: orNull(letter.error),
    message: orNull(letter.message),
    attempts: letter.attempts,
    first_failed_at: orNull(letter.firstFailedAt),
    last_failed_at: orNull(letter.lastFailedAt),
  }
}
export type Summary = ReturnType<typeof summary>

export const matching =
  ({ error, ids, since, type, user }: DeadLetterFilter) =>
  (letter: DeadLetter): boolean => {
    if (error !== undefined && letter.error !== error) return false
    if (since !== undefined && !(letter.lastFailedAt >= since)) return false
    if (ids === undefined && type === undefined && user === undefined) return true
    const { event_type, message_id, user_id } = content(letter)
    return (
      (ids === undefined || ids.has(letter.id) || (message_id !== null && ids.has(message_id))) &&
      (type === undefined || event_type === type) &&
      (user === undefined || user_id === user)
    )
  }

const select = (filter: DeadLetterFilter) =>
  Effect.map(DeadLetters, ({ list }) => Stream.filter(list, matching(filter)))

/** Letters, oldest first. */
export const listDeadLetters = (filter: DeadLetterFilter) =>
  Effect.flatMap(select(filter), (found) =>
    Effect.map(Stream.runCollect(Stream.map(found, summary)), (all): ReadonlyArray<Summary> => [...all]),
  )

export type Group = typeof DeadLetterGroup.Type

/** By error, the greatest group first. */
export const groupDeadLetters = (filter: DeadLetterFilter) =>
  Effect.flatMap(select(filter), (found) =>
    Stream.runFold(Stream.map(found, summary), new Map<string | null, Group>(), (groups, letter) => {
      const { error, first_failed_at, id, last_failed_at, message, message_id } = letter
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

/** No letter has this id. */
export class DeadLetterNotFound extends Schema.TaggedError<DeadLetterNotFound>()("DeadLetterNotFound", {
  ids: Schema.Array(Schema.String),
}) {
  override get message() {
    return `no dead letter has the id or message_id ${this.ids.join(", ")}`
  }
}

/** All that is known of the letters with this id; several share a `message_id` when a message died more than once. */
export const showDeadLetter = (id: string) =>
  Effect.gen(function* () {
    const found = yield* Stream.runCollect(yield* select({ ids: new Set([id]) }))
    if (found.length === 0) return yield* new DeadLetterNotFound({ ids: [id] })
    return [...found].map((letter) => ({
      ...summary(letter),
      retried_from: letter.retriedFrom,
      worker: orNull(letter.worker),
      original_exchange: orNull(letter.originalExchange),
      original_routing_key: orNull(letter.originalRoutingKey),
      ...bodyOf(letter.body),
    }))
  })

/** The letters that are meant. Fails when one of the ids is nobody's, so that nothing is done by halves. */
export const pickDeadLetters = (filter: DeadLetterFilter) =>
  Effect.gen(function* () {
    const picked = yield* listDeadLetters(filter)
    const known = new Set(picked.flatMap(({ id, message_id }) => [id, message_id]))
    const unknown = [...(filter.ids ?? [])].filter((id) => !known.has(id))
    if (unknown.length > 0) return yield* new DeadLetterNotFound({ ids: unknown })
    return picked
  })

/** Not every letter that was meant could be published again; the others stay. */
export class NotRetried extends Schema.TaggedError<NotRetried>()("NotRetried", { left: Schema.Number }) {
  override get message() {
    return `${this.left} could not be published and stay in failed`
  }
}

/** Publishes letters again and removes them; answers how many were meant and how many it was. */
export const retryDeadLetters = (filter: DeadLetterFilter) =>
  Effect.gen(function* () {
    const { retry } = yield* DeadLetters
    const isMeant = matching(filter)
    let picked = 0
    const retried = yield* retry((letter) => {
      const meant = isMeant(letter)
      if (meant) picked += 1
      return meant
    })
    return { picked, retried }
  })

const identity = ({ id, last_failed_at, message_id }: Summary) => `${id}|${message_id}|${last_failed_at}`

/** Removes exactly these letters, none that came after them; answers how many. */
export const removeDeadLetters = (picked: ReadonlyArray<Summary>) =>
  Effect.flatMap(DeadLetters, ({ remove }) => {
    const meant = new Set(picked.map(identity))
    return remove((letter) => meant.has(identity(summary(letter))))
  })
