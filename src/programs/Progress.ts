/** A line on stderr that tells how far a long command is; only on a terminal. */
import { Effect } from "effect"

const everyMillis = 200

/** Runs what reports a rising number of `things`, as "rows". */
export const counting = <A, E, R>(
  things: string,
  run: (progress: (count: number) => Effect.Effect<void>) => Effect.Effect<A, E, R>,
): Effect.Effect<A, E, R> => {
  if (!process.stderr.isTTY) return run(() => Effect.void)
  let shown = 0
  const show = (count: number) =>
    Effect.clockWith((clock) =>
      Effect.map(clock.currentTimeMillis, (now) => {
        if (now - shown < everyMillis) return
        shown = now
        process.stderr.write(`\r${count} ${things}`)
      }),
    )
  return Effect.ensuring(
    run(show),
    Effect.sync(() => process.stderr.write("\r\u001b[K")),
  )
}
