/**
 * Progress of long commands on stderr: on a terminal one line, redrawn in place; elsewhere a log entry every ten seconds,
 * if the total is known.
 */
import { Clock, Console, Effect, identity, Logger, LogLevel, Option } from "effect"
import * as Settings from "../../../services/Settings.ts"
import { errorJson } from "./ErrorReport.ts"
import { AsJson } from "./Output.ts"

/** `count` things so far; `done` of `total`, in bytes for example, give the percentage and the time left. */
export interface Reached {
  readonly count: number
  readonly done?: number
  readonly total?: number
  /** Line of the file that comes next. */
  readonly line?: number
}

/** What an interrupted command says on stderr. */
export type Stopped = (reached: Reached) => string | undefined

const drawEveryMillis = 200
const logEveryMillis = 10_000

/** Commands log only warnings, but progress is logged too unless LOG_LEVEL is set. */
const logProgress = Effect.map(Effect.option(Settings.LOG_LEVEL), (given) =>
  Option.isSome(Option.flatten(given)) ? identity : Logger.withMinimumLogLevel(LogLevel.Info),
)

/** `1,234,567`. */
export const figure = (n: number): string => Math.round(n).toLocaleString("en-US")

/** `8 s`, `3 min 20 s`, `2 h 5 min`. */
export const duration = (seconds: number): string => {
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  const minutes = Math.floor(whole / 60)
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

const goOn =
  (things: string): Stopped =>
  ({ count, line }) =>
    `stopped ${line === undefined ? `after ${figure(count)} ${things}` : `at line ${figure(line)}`}; run it again to go on`

/** Prints where the run stopped if a signal interrupts it. */
export const sayingWhere = <A, E, R>(run: Effect.Effect<A, E, R>, where: () => string | undefined) =>
  Effect.onInterrupt(run, () => {
    const said = where()
    if (said === undefined) return Effect.void
    return Effect.flatMap(AsJson, (asJson) =>
      Console.error(asJson ? errorJson({ type: "Stopped", message: said }) : said),
    )
  })

/**
 * Shows the progress that `run` reports, in `things` such as "rows", and where it was when a signal stopped it. The first
 * report is the base of the rate, because an import that resumes begins with a count.
 */
export const measured = <A, E, R>(
  things: string,
  run: (progress: (reached: Reached) => Effect.Effect<void>) => Effect.Effect<A, E, R>,
  stopped: Stopped = goOn(things),
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const terminal = process.stderr.isTTY
    let last: Reached = { count: 0 }
    let first: (Reached & { readonly at: number }) | undefined
    let shown: number | undefined

    const show = Effect.fnUntraced(function* (reached: Reached) {
      last = reached
      const now = yield* Clock.currentTimeMillis
      first ??= { ...reached, at: now }
      shown ??= now
      if (now - shown < (terminal ? drawEveryMillis : logEveryMillis)) return
      shown = now
      const { done = 0, total = 0 } = reached
      const seconds = (now - first.at) / 1_000
      const rate = (reached.count - first.count) / seconds
      const speed = (done - (first.done ?? 0)) / seconds
      const percent = total > 0 ? (100 * done) / total : undefined
      const left = speed > 0 ? (total - done) / speed : undefined
      if (terminal)
        process.stderr.write(
          `\r\x1b[K${[
            ...(percent === undefined ? [] : [`${percent.toFixed(1)} %`]),
            `${figure(reached.count)} ${things}`,
            `${figure(rate)}/s`,
            ...(left === undefined ? [] : [`${duration(left)} left`]),
          ].join("  ")}`,
        )
      else if (percent !== undefined)
        yield* Effect.logInfo("progress").pipe(
          yield* logProgress,
          Effect.annotateLogs({
            [things]: reached.count,
            per_second: Math.round(rate),
            percent: Math.round(percent),
            ...(left === undefined ? {} : { seconds_left: Math.round(left) }),
          }),
        )
    })

    const clear = Effect.sync(() => terminal && process.stderr.write("\r\x1b[K"))
    return sayingWhere(Effect.ensuring(run(show), clear), () => stopped(last))
  })

/** The same for a run without a known total. */
export const counting = <A, E, R>(
  things: string,
  run: (progress: (count: number) => Effect.Effect<void>) => Effect.Effect<A, E, R>,
  stopped?: Stopped,
): Effect.Effect<A, E, R> => measured(things, (progress) => run((count) => progress({ count })), stopped)

const spinner = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"]

/** For work without a count: shows `what` and the seconds so far, on a terminal, after the first second. */
export const waiting =
  (what: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      if (!process.stderr.isTTY) return effect
      let drawn = 0
      const draw = Effect.sync(() => {
        const symbol = spinner[drawn % spinner.length]
        const seconds = 1 + Math.floor((drawn++ * drawEveryMillis) / 1_000)
        process.stderr.write(`\r\x1b[K${symbol} ${what}, ${duration(seconds)}`)
      })
      const drawing = Effect.zipRight(
        Effect.sleep("1 second"),
        Effect.forever(Effect.zipRight(draw, Effect.sleep(drawEveryMillis))),
      )
      return Effect.raceFirst(effect, drawing).pipe(
        Effect.ensuring(Effect.sync(() => drawn > 0 && process.stderr.write("\r\x1b[K"))),
      )
    })
