/**
 * Makes two users one person. Each step is one write, and a step that is done is not done again, so whoever meets a record
 * in between ends the merge:
 *
 * 1. The record of the merged id is frozen: it names the merge, and no event is folded into it any more.
 * 2. The target takes all that the frozen record has, its ids and the id of the merge, in one compare-and-swap.
 * 3. The frozen record becomes an alias, which has nothing but the id of the target.
 */
import { Clock, Effect, Schema } from "effect"
import { identity } from "effect/Function"
import { type Alias, hasAlias, ledgersOf, type Merging } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { isErased, type Recorded } from "../model/Erasure.ts"
import { canCombine, combine } from "../model/Fold.ts"
import type { Merge, UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import { LockConflict, type UserRecord } from "../ports/UserEmbeddings.ts"
import { findInOverflow } from "./AppliedInteractions.ts"
import { rebuildUser, type Services } from "./UserRebuild.ts"

/** The target of the merge is an alias of the id to be merged. */
export class AliasCircle extends Schema.TaggedError<AliasCircle>()("AliasCircle", {
  user_id: Schema.String,
  from: Schema.String,
}) {
  override get message() {
    return `${this.user_id} is an alias of ${this.from}, so ${this.from} can't be merged into it`
  }
}

export class AliasTaken extends Schema.TaggedError<AliasTaken>()("AliasTaken", {
  from: Schema.String,
  owner: Schema.String,
}) {
  override get message() {
    return `${this.from} is an alias of ${this.owner} already`
  }
}

type Errors = Effect.Effect.Error<ReturnType<typeof takeOver>>

/** Where events of an id belong. */
interface Owner {
  readonly user_id: UserId
  readonly record: UserRecord | undefined
  /** The record of the id itself. */
  readonly first: UserRecord | undefined
}

const conflict = (user_id: UserId) => new LockConflict({ user_id, tries: 1 })

/** Replaces the record with this version; 0: there is none. */
const write = Effect.fnUntraced(function* ({ users }: Services, record: UserRecord, version: number) {
  const { archive: ids, kept } = AppliedIds.append(record.applied, [])
  const { archived, generation, user_id } = record
  if (ids.length > 0) yield* users.saveToLedger("applied", [{ user_id, generation, ids }])
  const next = { ...record, applied: kept, archived: archived + ids.length, version: version + 1 }
  const [saved] = yield* users.save([{ record: next, expected: version === 0 ? undefined : version }])
  if (saved !== true) return yield* conflict(user_id)
})

const emptyRecord = (user_id: UserId): UserRecord => ({
  user_id,
  embedding: undefined,
  version: 0,
  applied: AppliedIds.none,
  archived: 0,
  erased_at: 0,
  erased_to: null,
  generation: 0,
})

/** `undefined` if the log must tell what the two are together. */
const joined = (a: UserEmbedding | undefined, b: UserEmbedding | undefined, user_id: UserId, now: number) => {
  if (a === undefined || b === undefined) return { embedding: a ?? (b && { ...b, user_id }) }
  return canCombine(a, b) ? { embedding: combine(a, b, now) } : undefined
}

/** The target with all that the frozen record has, but the vector. */
const absorb = (target: UserRecord, source: UserRecord, { message_id }: Merging): UserRecord => {
  const { archived, generation, user_id } = source
  const aliases: ReadonlyArray<Alias> = [
    ...(target.links?.aliases ?? []),
    ...(source.links?.aliases ?? []),
    { user_id, generation, archived },
  ]
  return {
    ...target,
    applied: AppliedIds.union(target.applied, [...AppliedIds.toSet(source.applied), message_id]),
    links: { aliases },
  }
}

const takeOver = Effect.fnUntraced(function* (
  services: Services,
  target: UserRecord,
  source: UserRecord,
  merging: Merging,
) {
  const { embedding: before, user_id } = target
  const now = yield* Clock.currentTimeMillis
  const sum = joined(before, source.embedding, user_id, now)
  const absorbed = absorb(target, source, merging)
  if (sum !== undefined) return yield* write(services, { ...absorbed, ...sum }, target.version)
  const created_at = Math.min(before?.created_at ?? now, source.embedding?.created_at ?? now)
  const embedding = before && { ...before, created_at }
  const change = ({ version }: UserRecord) =>
    version === target.version ? { ...absorbed, embedding } : undefined
  return yield* rebuildUser(services, user_id, { allowMissing: true, change }, identity)
})

/**
 * Ends the merge of a frozen record. `waiting`: frozen records that wait for this one. A circle of frozen records, which the
 * log never makes, is broken at the greatest id.
 */
const finish = (
  services: Services,
  source: UserRecord,
  merging: Merging,
  waiting: ReadonlyArray<UserRecord>,
): Effect.Effect<void, Errors> =>
  Effect.gen(function* () {
    const { first, record, user_id } = yield* settle(services, merging.user_id, [...waiting, source])
    const { links: { merging_into: _, ...links } = {}, ...rest } = source
    // An erasure covers the merge, or is about to cover this record too.
    if (first !== undefined && isErased(first, merging))
      return yield* write(services, { ...rest, links }, source.version)
    const target = record ?? emptyRecord(user_id)
    if (!hasAlias(target, source.user_id)) yield* takeOver(services, target, source, merging)
    const { erased_at, erased_to, generation } = source
    const alias = { ...emptyRecord(source.user_id), erased_at, erased_to, generation }
    yield* write(services, { ...alias, links: { alias_of: user_id } }, source.version)
  })

/** Follows an id to the user who owns its events, and ends merges on the way. */
export const settle = (
  services: Services,
  id: UserId,
  waiting: ReadonlyArray<UserRecord> = [],
): Effect.Effect<Owner, Errors> =>
  Effect.gen(function* () {
    const first = (yield* services.users.load([id])).get(id)
    const { alias_of, merging_into } = first?.links ?? {}
    if (first !== undefined && merging_into !== undefined) {
      if (waiting.some(({ user_id }) => user_id === id)) return yield* unfreezeOne(services, waiting)
      yield* finish(services, first, merging_into, waiting)
      return yield* settle(services, id, waiting)
    }
    if (alias_of === undefined) return { user_id: id, record: first, first }
    const owner = yield* settle(services, alias_of, waiting)
    // Otherwise an erasure has removed one of the two records since, or is about to.
    if (owner.record === undefined || !hasAlias(owner.record, id)) return yield* conflict(id)
    return { ...owner, first }
  })

const unfreezeOne = (services: Services, circle: ReadonlyArray<UserRecord>) => {
  const last = circle.reduce((a, b) => (a.user_id > b.user_id ? a : b))
  const { links: { merging_into: _, ...links } = {}, ...rest } = last
  return Effect.zipRight(write(services, { ...rest, links }, last.version), conflict(last.user_id))
}

const isApplied = ({ users }: Services, { record, user_id }: Owner, message_id: string) => {
  if (record === undefined) return Effect.succeed(false)
  if (AppliedIds.has(record.applied, message_id)) return Effect.succeed(true)
  const id = AppliedIds.prefix(message_id)
  return Effect.map(
    findInOverflow(users, new Map([[user_id, [id]]]), () => ledgersOf(record)),
    (found) => found.get(user_id)?.has(id) === true,
  )
}

/** Applies a merge; succeeds when it is durable. */
export const applyMerge = (
  services: Services,
  { message_id, reference: from, user_id }: Merge,
  at: Recorded,
) =>
  Effect.gen(function* () {
    const target = yield* settle(services, user_id)
    if (target.first !== undefined && isErased(target.first, at)) return true
    if (yield* isApplied(services, target, message_id)) {
      // A worker that died after the target's write has left the record of the merged id frozen.
      yield* settle(services, from)
      return true
    }
    const source = yield* settle(services, from)
    const now = yield* settle(services, user_id)
    if (now.user_id !== target.user_id || now.record?.version !== target.record?.version)
      return yield* conflict(user_id)
    if (source.first !== undefined && isErased(source.first, at)) return true
    if (target.user_id === from) return yield* new AliasCircle({ user_id, from })
    if (source.user_id === target.user_id && target.record !== undefined) {
      // Another merge has said the same.
      const applied = AppliedIds.union(target.record.applied, [message_id])
      yield* write(services, { ...target.record, applied }, target.record.version)
      return true
    }
    if (source.user_id !== from) return yield* new AliasTaken({ from, owner: source.user_id })
    const { logId, recordedAt } = at
    const record = source.record ?? emptyRecord(from)
    const merging_into = { user_id, message_id, logId, recordedAt }
    const frozen = { ...record, links: { ...record.links, merging_into } }
    yield* write(services, frozen, record.version)
    return false
  }).pipe(
    Effect.repeat({ until: (isDone: boolean) => isDone }),
    Effect.zipRight(services.users.awaitDurable),
    // A worker may have died between one of the writes and its announcement.
    Effect.zipRight(services.users.announce([from, user_id])),
  )
