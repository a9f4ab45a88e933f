/**
 * How new rows of the log change the histories of people. An answer depends on the rows with ids up to `upTo` alone, so
 * that it is the same when it is read again after a crash; only erasures and prunes can change it.
 */
import type { Fragment } from "@effect/sql/Statement"
import { Array as Arr, Effect } from "effect"
import type { UserId } from "../../services/model/Interaction.ts"
import { reach } from "../../services/model/Together.ts"
import type { HistoryChange, InteractionLog, TouchedUser } from "../../services/ports/InteractionLog.ts"
import { type Link, linksOf } from "./SqlAliases.ts"
import type { Table } from "./SqlTable.ts"

/** People whose events one statement reads: about 3 ms of SQLite, which blocks its process. */
const peoplePerStatement = 25

/** Before and after all instants. A merge changes the whole history. */
const first = "1000-01-01 00:00:00.000"
const last = "9999-12-31 23:59:59.999"
const always = { since: first, until: last }

export const touched =
  ({ name, select, sql }: Table): InteractionLog["Type"]["touched"] =>
  (after, upTo) =>
    sql<TouchedUser & { readonly merges: number }>`
      SELECT user_id, MIN(occurred_at) AS since, MAX(occurred_at) AS until,
        SUM(CASE event_type WHEN 'merge' THEN 1 ELSE 0 END) AS merges
      FROM ${name} WHERE id > ${after} AND id <= ${upTo} GROUP BY user_id`.unprepared.pipe(
      select("touched"),
      Effect.map(
        Arr.map(({ merges, since, until, user_id }) =>
          Number(merges) > 0 ? { user_id, ...always } : { user_id, since, until },
        ),
      ),
    )

export const usersAfter =
  ({ select, sql, withIndex }: Table): InteractionLog["Type"]["usersAfter"] =>
  (user, limit) =>
    sql<{ user_id: UserId }>`
      SELECT DISTINCT user_id FROM ${withIndex("user_interactions_history")} WHERE user_id > ${user}
      ORDER BY user_id LIMIT ${limit}`.unprepared.pipe(
      select("usersAfter"),
      Effect.map(Arr.map(({ user_id }) => ({ user_id, ...always }))),
    )

/** The ids that these links connect. Each id is in one set. */
const connect = (ids: Iterable<UserId>, links: ReadonlyArray<Link>) => {
  const setOf = new Map<UserId, Set<UserId>>(Array.from(ids, (id) => [id, new Set([id])]))
  for (const { alias, user_id } of links) {
    const [one, other] = [setOf.get(alias), setOf.get(user_id)]
    if (one === undefined || other === undefined || one === other) continue
    for (const id of other) {
      one.add(id)
      setOf.set(id, one)
    }
  }
  return setOf
}

/** The people with these ids, by the merges in rows up to `upTo`, and who they were by those up to `after`. */
const peopleOf = Effect.fnUntraced(function* (
  { name, sql }: Table,
  some: ReadonlyArray<TouchedUser>,
  after: number,
  upTo: number,
) {
  const found = yield* linksOf(
    sql,
    some.map(({ user_id }) => user_id),
  )
  const links = [...found.links.values()]
  const merges =
    links.length === 0
      ? []
      : yield* sql<{ id: number; message_id: string }>`SELECT id, message_id FROM ${name} WHERE ${sql.in(
          "message_id",
          links.map(({ message_id }) => message_id),
        )}`.unprepared
  const idOf = new Map(merges.map(({ id, message_id }) => [message_id, id]))
  const upToRow = (row: number) => links.filter(({ message_id }) => (idOf.get(message_id) ?? 0) <= row)
  const now = connect(found.ids, upToRow(upTo))
  const then = connect(found.ids, upToRow(after))
  const rangeOf = new Map(some.map((one) => [one.user_id, one]))
  const people = new Set(some.map(({ user_id }) => now.get(user_id)!))
  return Array.from(people, (ids) => {
    const ranges = [...ids].flatMap((id) => rangeOf.get(id) ?? [])
    return {
      ids: [...ids],
      before: [...new Set([...ids].map((id) => then.get(id)!))],
      since: ranges.map(({ since }) => since).toSorted()[0]!,
      until: ranges
        .map(({ until }) => until)
        .toSorted()
        .at(-1)!,
    }
  })
})
type Person = Effect.Effect.Success<ReturnType<typeof peopleOf>>[number]

interface Row {
  readonly person: number
  readonly id: number
  readonly user_id: UserId
  readonly occurred_at: string
  readonly event_type: string
  readonly product_id: string | null
  readonly message_id: string
  readonly reference: string | null
}

/** The rows between `since` and `until`, and the events before and after them that are not taken back. */
const rowsOf = (
  { name, sql }: Table,
  { ids, since, until }: Person,
  person: number,
  upTo: number,
): ReadonlyArray<Fragment> => {
  const columns = sql.literal(
    `${person} AS person, id, user_id, occurred_at, event_type, product_id, message_id, reference`,
  )
  const ofPerson = sql`${sql.in("user_id", ids)} AND id <= ${upTo}`
  const isEvent = sql`reference IS NULL AND NOT EXISTS (
    SELECT 1 FROM ${name} r WHERE r.user_id = e.user_id AND r.occurred_at = e.occurred_at
      AND r.event_type = 'retraction' AND r.reference = e.message_id AND r.id <= ${upTo})`
  const within = sql`SELECT ${columns} FROM ${name} e
    WHERE ${ofPerson} AND occurred_at >= ${since} AND occurred_at <= ${until}`
  if (since === first) return [within]
  const beside = (condition: Fragment, order: string) =>
    sql`SELECT * FROM (SELECT ${columns} FROM ${name} e WHERE ${ofPerson} AND ${condition} AND ${isEvent}
      ORDER BY ${sql.literal(order)} LIMIT ${reach}) beside`
  return [
    beside(sql`occurred_at < ${since}`, "occurred_at DESC, id DESC"),
    within,
    beside(sql`occurred_at > ${until}`, "occurred_at, id"),
  ]
}

/** The history by the rows up to `upTo`, of these ids. `rows` are in the order of the history. */
const historyOf = (rows: ReadonlyArray<Row>, ids: ReadonlySet<UserId> | undefined, upTo: number) => {
  const visible = rows.filter(({ id, user_id }) => id <= upTo && (ids?.has(user_id) ?? true))
  const takenBack = new Set(
    visible.flatMap(({ event_type, reference }) => (event_type === "retraction" ? [reference] : [])),
  )
  return visible.filter(({ message_id, reference }) => reference === null && !takenBack.has(message_id))
}

const byTime = (a: Row, b: Row) =>
  a.occurred_at < b.occurred_at ? -1 : a.occurred_at > b.occurred_at ? 1 : a.id - b.id

export const historyChanges =
  (table: Table): InteractionLog["Type"]["historyChanges"] =>
  (all, after, upTo) =>
    Effect.gen(function* () {
      const { select, sql } = table
      const people = yield* select("historyChanges")(peopleOf(table, all, after, upTo))
      const changes: Array<HistoryChange> = []
      for (const some of Arr.chunksOf(people, peoplePerStatement)) {
        const parts = some.flatMap((person, index) => rowsOf(table, person, index, upTo))
        const query = parts.reduce((sum, part) => sql`${sum} UNION ALL ${part}`)
        const rows = yield* sql<Row>`${query}`.unprepared.pipe(select("historyChanges"))
        const ofPerson = Map.groupBy(rows, ({ person }) => person)
        for (const [index, { before, ids }] of some.entries()) {
          const found = (ofPerson.get(index) ?? []).toSorted(byTime)
          changes.push({
            ids,
            before: before.map((some) => historyOf(found, some, after)),
            after: historyOf(found, undefined, upTo),
          })
        }
      }
      return changes
    })
