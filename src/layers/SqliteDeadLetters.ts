/** The dead letters of the embedded stack: rows of the queue table that were moved to `failed`. */
import { Chunk, Clock, Effect, Layer, Option, Stream } from "effect"
import { type DeadLetter, DeadLetters, DeadLettersError } from "../services/DeadLetters.ts"
import { failedQueue, queue } from "../services/InteractionQueue.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"
import type { Headers } from "./SqliteInteractionQueue.ts"

interface Row {
  readonly id: number
  readonly body: Uint8Array
  readonly headers: string
}

const rowsPerPage = 500

const toLetter = ({ body, headers: text }: Row): DeadLetter => {
  const headers: Headers = JSON.parse(text)
  return {
    id: headers.deadLetterId ?? "",
    messageId: headers.messageId,
    error: headers.error ?? "",
    message: headers.errorMessage ?? "",
    attempts: headers.attempts ?? 1,
    firstFailedAt: headers.firstFailedAt ?? "",
    lastFailedAt: headers.lastFailedAt ?? "",
    worker: headers.worker ?? "",
    originalExchange: headers.exchange,
    originalRoutingKey: headers.routingKey,
    body,
  }
}

const make = Effect.map(Sqlite, (sqlite) => {
  const failing = failingWith((failure) => new DeadLettersError(failure))

  const page = (after: number) =>
    failing("list")(
      sqlite.use((database) =>
        database
          .query<Row, [string, number, number]>(
            "SELECT id, body, headers FROM queue_messages WHERE queue = ? AND id > ? ORDER BY id LIMIT ?",
          )
          .all(failedQueue, after, rowsPerPage),
      ),
    )
  const rows = Stream.paginateChunkEffect(0, (after: number) =>
    Effect.map(page(after), (found) => {
      const last = found.at(-1)
      return [
        Chunk.unsafeFromArray(found),
        last !== undefined && found.length === rowsPerPage ? Option.some(last.id) : Option.none<number>(),
      ] as const
    }),
  )
  const picked = (pick: (letter: DeadLetter) => boolean) =>
    Stream.runCollect(Stream.filter(rows, (row) => pick(toLetter(row)))).pipe(
      Effect.map(Chunk.toReadonlyArray),
    )

  return DeadLetters.of({
    list: Stream.map(rows, toLetter),
    count: failing("count")(
      sqlite.use(
        (database) =>
          database
            .query<{ n: number }, [string]>("SELECT COUNT(*) AS n FROM queue_messages WHERE queue = ?")
            .get(failedQueue)?.n ?? 0,
      ),
    ),
    retry: (pick) =>
      Effect.gen(function* () {
        const letters = yield* picked(pick)
        const now = yield* Clock.currentTimeMillis
        return yield* failing("retry")(
          sqlite.transaction((database) => {
            const move = database.query(
              "UPDATE queue_messages SET queue = ?, headers = ?, available_at = ? WHERE id = ? AND queue = ?",
            )
            let moved = 0
            for (const { headers: text, id } of letters) {
              const { deadLetterId, ...headers }: Headers = JSON.parse(text)
              const next: Headers = {
                ...headers,
                retryCount: 0,
                isolatedAttempts: 0,
                ...(deadLetterId === undefined ? {} : { retriedFrom: deadLetterId }),
              }
              moved += move.run(queue, JSON.stringify(next), now, id, failedQueue).changes
            }
            return moved
          }),
        )
      }),
    remove: (pick) =>
      Effect.flatMap(picked(pick), (letters) =>
        failing("remove")(
          sqlite.transaction((database) => {
            const remove = database.query("DELETE FROM queue_messages WHERE id = ? AND queue = ?")
            return letters.reduce((removed, { id }) => removed + remove.run(id, failedQueue).changes, 0)
          }),
        ),
      ),
  })
})

export const layer = Layer.effect(DeadLetters, make)
