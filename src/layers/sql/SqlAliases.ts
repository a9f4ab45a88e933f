/**
 * The table `user_aliases`: one row for each merge in the log, written in the transaction of its row. The links form a
 * forest, and the ids of one tree are one person.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { Effect } from "effect"
import type { Interaction, UserId } from "../../services/model/Interaction.ts"
import type { Appended, NewInteraction } from "../../services/ports/InteractionLog.ts"

export interface Link {
  readonly alias: UserId
  readonly user_id: UserId
  readonly message_id: string
}

/** All links of the people with these ids, by alias. `visit` runs for each set of ids before their links are read. */
export const linksOf = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  ids: ReadonlyArray<UserId>,
  visit: (ids: ReadonlyArray<UserId>) => Effect.Effect<unknown, SqlError> = () => Effect.void,
) {
  const links = new Map<UserId, Link>()
  const known = new Set(ids)
  for (let next: ReadonlyArray<UserId> = ids; next.length > 0; ) {
    yield* visit(next)
    // `alias = user_id` is a lock.
    const found = yield* sql<Link>`
      SELECT alias, user_id, message_id FROM user_aliases WHERE ${sql.in("alias", next)} AND alias <> user_id
      UNION
      SELECT alias, user_id, message_id FROM user_aliases WHERE ${sql.in("user_id", next)} AND alias <> user_id`
      .unprepared
    const reached: Array<UserId> = []
    for (const link of found) {
      links.set(link.alias, link)
      reached.push(link.alias, link.user_id)
    }
    next = [...new Set(reached)].filter((id) => !known.has(id))
    for (const id of next) known.add(id)
  }
  return { links, ids: [...known] }
})

/** Whether the person has other ids than this one. */
export const hasLinks = (sql: SqlClient.SqlClient, id: UserId) => {
  const linkWith = (column: "alias" | "user_id") =>
    sql`EXISTS (SELECT 1 FROM user_aliases WHERE ${sql(column)} = ${id} AND alias <> user_id)`
  return sql`(${linkWith("alias")} OR ${linkWith("user_id")})`
}

/** The id and those that it leads to; the last one is no alias. Ends in a table that was written by hand, too. */
const pathOf = (links: ReadonlyMap<UserId, Link>, id: UserId): ReadonlyArray<UserId> => {
  const path = new Set([id])
  let link = links.get(id)
  for (; link !== undefined && !path.has(link.user_id); link = links.get(link.user_id)) path.add(link.user_id)
  return [...path]
}

/** The id that an id leads to in the end. */
export const ownerIn = (links: ReadonlyMap<UserId, Link>, id: UserId): UserId => pathOf(links, id).at(-1)!

/** The person with this id: the id that is no alias, and all ids, an alias before what it leads to. */
export const personOf = (sql: SqlClient.SqlClient, user: UserId) =>
  Effect.map(linksOf(sql, [user]), ({ ids, links }) => ({
    user_id: ownerIn(links, user),
    ids: inOrder(links, ids),
  }))

const inOrder = (links: ReadonlyMap<UserId, Link>, ids: ReadonlyArray<UserId>) =>
  ids.toSorted((a, b) => pathOf(links, b).length - pathOf(links, a).length)

/** All links: the user that each alias leads to in the end. */
export const allAliases = (sql: SqlClient.SqlClient) =>
  Effect.map(sql<Link>`SELECT alias, user_id, message_id FROM user_aliases`.unprepared, (rows) => {
    const links = new Map(rows.map((link) => [link.alias, link]))
    return new Map(rows.map(({ alias }) => [alias, ownerIn(links, alias)]))
  })

/**
 * Runs the effect in a transaction during which no other merge or erasure of these people begins. An id that has no row gets
 * one for as long as the transaction lasts, because a row that is not there can't be locked.
 */
export const withLockedPeople = <A>(
  sql: SqlClient.SqlClient,
  wanted: ReadonlyArray<UserId>,
  run: (people: {
    readonly links: ReadonlyMap<UserId, Link>
    readonly ids: ReadonlyArray<UserId>
  }) => Effect.Effect<A, SqlError>,
): Effect.Effect<A, SqlError> => {
  const onConflict = sql.onDialectOrElse({
    mysql: () => sql.literal("ON DUPLICATE KEY UPDATE message_id = message_id"),
    orElse: () => sql.literal("ON CONFLICT (alias) DO NOTHING"),
  })
  const lock = (ids: ReadonlyArray<UserId>) =>
    sql`INSERT INTO user_aliases ${sql.insert(
      ids.toSorted().map((id) => ({ alias: id, user_id: id, message_id: "" })),
    )} ${onConflict}`.unprepared
  return sql.withTransaction(
    Effect.gen(function* () {
      const people = yield* linksOf(sql, wanted, lock)
      const answer = yield* run({ ...people, ids: inOrder(people.links, people.ids) })
      yield* sql`DELETE FROM user_aliases WHERE ${sql.in("alias", people.ids)} AND alias = user_id`.unprepared
      return answer
    }),
  )
}

/** Records a merge and its link. `find` reads the row of a merge, `record` appends one entry. */
export const appendMerge = (
  sql: SqlClient.SqlClient,
  entry: NewInteraction,
  find: (messageId: string) => Effect.Effect<Interaction | undefined, SqlError>,
  record: (entry: NewInteraction) => Effect.Effect<Appended, SqlError>,
): Effect.Effect<Appended, SqlError> => {
  const { interaction } = entry
  const [into, from] = [interaction.user_id, interaction.reference ?? ""]
  const refused = (detail: string): Appended => ({ _tag: "Refused", interaction, detail })
  return withLockedPeople(sql, [into, from], ({ links }) =>
    Effect.gen(function* () {
      const path = pathOf(links, into)
      if (path.includes(from)) return refused(`${into} is already an alias of ${from}`)
      const link = links.get(from)
      const of = ownerIn(links, from)
      if (link !== undefined && of !== path.at(-1)) return refused(`${from} is already an alias of ${of}`)
      const first = link && (yield* find(link.message_id))
      const answer = yield* record(first === undefined ? entry : { ...entry, interaction: first })
      if (answer._tag === "Recorded")
        yield* sql`UPDATE user_aliases SET user_id = ${into}, message_id = ${interaction.message_id}
          WHERE alias = ${from}`
      return answer
    }),
  )
}

/** For the transaction that deletes rows of a user, before it does: removes the links of merges among them. */
export const forgetLinks = (sql: SqlClient.SqlClient, user: UserId, ids: ReadonlyArray<number>) =>
  sql`DELETE FROM user_aliases WHERE user_id = ${user} AND message_id IN (
    SELECT message_id FROM user_interactions WHERE ${sql.in("id", ids)} AND event_type = 'merge')`.unprepared
