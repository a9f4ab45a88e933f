/** The dead letters of the embedded stack: rows of `queue_messages` in the queue `failed`. */
import type { Database } from "bun:sqlite"
import { Chunk, Clock, Effect, Layer, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../../services/ports/DeadLetters.ts"
import { failedQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { countOf, failingWith, paged, Sqlite } from "./Sqlite.ts"
import type { Headers } from "./SqliteDelivery.ts"

interface Row {
  readonly id: number
  /** When it became a dead letter. */
  readonly available_at: number
  readonly headers: string
  readonly body: Uint8Array
}

const rowsPerPage = 500

const toDeadLetter = ({ body, headers: text }: Row): DeadLetter => {
  const { exchange, failed, letter, logId, messageId, recordedAt, retriedFrom, routingKey }: Headers =
    JSON.parse(text)
  return {
    id: letter?.id ?? "",
    messageId,
    error: failed?.error ?? "",
    message: failed?.message ?? "",
    attempts: letter?.attempts ?? 1,
    firstFailedAt: failed?.firstFailedAt ?? "",
    lastFailedAt: failed?.lastFailedAt ?? "",
    worker: failed?.worker ?? "",
    originalExchange: exchange,
    originalRoutingKey: routingKey,
    retriedFrom: retriedFrom ?? null,
    logId: logId ?? null,
    recordedAt,
    body,
  }
}

/** The message before its failure, with the id of the dead letter. */
const toRetry = ({ headers: text }: Row): Headers => {
  const { failed: _, letter, ...headers }: Headers = JSON.parse(text)
  const retriedFrom = letter === undefined ? {} : { retriedFrom: letter.id }
  return { ...headers, ...retriedFrom, retryCount: 0, isolatedAttempts: 0 }
}

/** Messages that became dead letters at or before `until`, oldest first, after the last row of the page before. */
const readPage = (database: Database, until: number, after: Pick<Row, "available_at" | "id">) =>
  database
    .query<Row, [string, number, number, number, number]>(
      `SELECT id, available_at, headers, body FROM queue_messages
       WHERE queue = ? AND holder IS NULL AND available_at <= ? AND (available_at, id) > (?, ?)
       ORDER BY available_at, id LIMIT ?`,
    )
    .all(failedQueue, until, after.available_at, after.id, rowsPerPage)

/** When the newest dead letter became one. By the clock of another process this may be in the future. */
const newest = (database: Database): number =>
  countOf(database, "SELECT COALESCE(MAX(available_at), 0) FROM queue_messages WHERE queue = ?", failedQueue)

const make = Effect.map(Sqlite, (sqlite) => {
  const failing = failingWith(portError(DeadLettersError))

  const pages = (operation: string, until: number) =>
    paged(
      rowsPerPage,
      { available_at: 0, id: 0 },
      (after) => failing(operation)(sqlite.use((database) => readPage(database, until, after))),
      (last) => last,
    )

  /**
   * Changes the picked dead letters, one transaction per page, and returns the number of changed rows. Messages that
   * become dead letters meanwhile are left out.
   */
  const change = (
    operation: string,
    pick: (deadLetter: DeadLetter) => boolean,
    statement: (database: Database, row: Row, now: number) => number,
  ) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const until = yield* failing(operation)(sqlite.use(newest))
      return yield* pages(operation, until).pipe(
        Stream.runFoldEffect(0, (changed, rows) => {
          const picked = rows.filter((row) => pick(toDeadLetter(row)))
          if (picked.length === 0) return Effect.succeed(changed)
          return sqlite
            .transaction((database) =>
              picked.reduce((count, row) => count + statement(database, row, now), changed),
            )
            .pipe(failing(operation))
        }),
      )
    })

  return DeadLetters.of({
    list: Stream.mapConcatChunk(pages("list", Number.MAX_SAFE_INTEGER), (rows) =>
      Chunk.map(Chunk.unsafeFromArray(rows), toDeadLetter),
    ),
    count: failing("count")(
      sqlite.use((database) =>
        countOf(database, "SELECT COUNT(*) FROM queue_messages WHERE queue = ?", failedQueue),
      ),
    ),
    retry: (pick) =>
      change(
        "retry",
        pick,
        (database, row, now) =>
          database
            .query(
              "UPDATE queue_messages SET queue = ?, headers = ?, available_at = ? WHERE id = ? AND queue = ?",
            )
            .run(queue, JSON.stringify(toRetry(row)), now, row.id, failedQueue).changes,
      ),
    remove: (pick) =>
      change(
        "remove",
        pick,
        (database, { id }) =>
          database.query("DELETE FROM queue_messages WHERE id = ? AND queue = ?").run(id, failedQueue)
            .changes,
      ),
  })
})

export const layer = Layer.effect(DeadLetters, make)
