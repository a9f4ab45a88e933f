/** The dead letters of the embedded stack: rows of the queue table that were moved to `failed`. */
import type { Database } from "bun:sqlite"
import { Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../../services/ports/DeadLetters.ts"
import { failedQueue, queue } from "../../services/ports/InteractionQueue.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"
import type { Headers } from "./SqliteDelivery.ts"

/** `available_at` is when it died. */
interface Row {
  readonly id: number
  readonly available_at: number
  readonly headers: string
  readonly body: Uint8Array
}

const rowsPerPage = 500

const toLetter = ({ body, headers: text }: Row): DeadLetter => {
  const { exchange, failed, letter, messageId, recordedAt, retriedFrom, routingKey }: Headers =
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
    recordedAt,
    body,
  }
}

/** The message as it was before it failed, marked with the dead letter that it was. */
const toRetry = ({ headers: text }: Row): Headers => {
  const { failed: _, letter, ...headers }: Headers = JSON.parse(text)
  const retriedFrom = letter === undefined ? {} : { retriedFrom: letter.id }
  return { ...headers, ...retriedFrom, retryCount: 0, isolatedAttempts: 0 }
}

const make = Effect.map(Sqlite, (sqlite) => {
  const failing = failingWith((failure) => new DeadLettersError(failure))

  /** Pages of letters that died at or before `until`, oldest first. */
  const pages = (operation: string, until: number) =>
    Stream.paginateEffect({ available_at: 0, id: 0 }, (after) =>
      sqlite
        .use((database) =>
          database
            .query<Row, [string, number, number, number, number]>(
              `SELECT id, available_at, headers, body FROM queue_messages
               WHERE queue = ? AND holder IS NULL AND available_at <= ? AND (available_at, id) > (?, ?)
               ORDER BY available_at, id LIMIT ?`,
            )
            .all(failedQueue, until, after.available_at, after.id, rowsPerPage),
        )
        .pipe(
          failing(operation),
          Effect.map((rows) => [
            rows,
            Option.filter(Option.fromNullable(rows.at(-1)), () => rows.length === rowsPerPage),
          ]),
        ),
    )

  /**
   * Does something to the letters that the predicate picks, a transaction a page; answers how many rows it changed.
   * A letter that dies again meanwhile is left alone.
   */
  const change = (
    operation: string,
    pick: (letter: DeadLetter) => boolean,
    statement: (database: Database, row: Row, now: number) => number,
  ) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) =>
      pages(operation, now).pipe(
        Stream.runFoldEffect(0, (changed, rows) => {
          const picked = rows.filter((row) => pick(toLetter(row)))
          if (picked.length === 0) return Effect.succeed(changed)
          return sqlite
            .transaction((database) =>
              picked.reduce((count, row) => count + statement(database, row, now), changed),
            )
            .pipe(failing(operation))
        }),
      ),
    )

  return DeadLetters.of({
    list: Stream.mapConcatChunk(pages("list", Number.MAX_SAFE_INTEGER), (rows) =>
      Chunk.map(Chunk.unsafeFromArray(rows), toLetter),
    ),
    count: sqlite
      .use(
        (database) =>
          database
            .query<{ n: number }, [string]>("SELECT COUNT(*) AS n FROM queue_messages WHERE queue = ?")
            .get(failedQueue)?.n ?? 0,
      )
      .pipe(failing("count")),
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
