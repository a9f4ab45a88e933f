/**
 * Logs the outages of one server: once when an outage begins, once a minute while it lasts, and once when it ends. Each
 * adapter has one for its server and reports every call, so that no step has to log what all of them see.
 */
import { Cause, Clock, Duration, Effect } from "effect"
import type { PortFailure } from "./ports/PortFailure.ts"
import { described } from "./Telemetry.ts"

const logEvery = Duration.toMillis("1 minute")
/** An operation that failed this long ago and was not tried again does not keep an outage open. */
const forgottenAfter = Duration.toMillis("10 seconds")
const tryEvery = Duration.toMillis("1 second")

/** `RabbitMQ at a.example:5672, b.example:5672`. Without user, password and database. */
export const serverName = (product: string, urls: string | ReadonlyArray<string>, defaultPort: number) => {
  const addresses = [urls].flat().map((url) => {
    const { hostname, port } = new URL(url)
    return `${hostname}:${port || defaultPort}`
  })
  return `${product} at ${addresses.join(", ")}`
}

/** Conflicts and bad data say nothing about the server. */
export const isOutage = (reason: PortFailure["reason"]): boolean =>
  reason !== "conflict" && reason !== "invalid_data"

/** Logs a failure, unless the adapter has reported it as an outage of its server. */
export const unlessReported = (error: unknown, log: Effect.Effect<void>): Effect.Effect<void> => {
  const { reason, server }: Partial<Pick<PortFailure, "reason" | "server">> = Object(error)
  return server !== undefined && reason !== undefined && isOutage(reason) ? Effect.void : log
}

/**
 * Logs why background work failed, unless the adapter has, and succeeds: a failure must not end the fiber that repeats
 * the work. Neither must a defect, such as that of a row which another program wrote.
 */
export const warning =
  (event: string, facts: Readonly<Record<string, unknown>> = {}) =>
  <A, E extends Error, R>(work: Effect.Effect<A, E, R>) => {
    const log = (error: Error) =>
      unlessReported(error, Effect.annotateLogs(Effect.logWarning(event), { ...facts, ...described(error) }))
    return Effect.catchAllCause(work, (cause) => {
      if (Cause.isInterruptedOnly(cause)) return Effect.interrupt
      const error = Cause.squash(cause)
      return log(error instanceof Error ? error : new Error(String(error)))
    })
  }

export class ServerOutage {
  /** Operations whose last attempt failed, and when (Unix ms). A server may refuse writes and answer reads. */
  private readonly failing = new Map<string, { readonly at: number; readonly error: unknown }>()
  private began = 0
  private logged = 0
  /** When a call may try whether the outage has ended (Unix ms). */
  private nextTry = 0

  constructor(readonly server: string) {}

  get isKnown(): boolean {
    return this.failing.size > 0
  }

  /**
   * Fails a call at once as the last one of its operation has failed. One call at a time, and one a second, finds out
   * whether the outage has ended. The calls of an operation must have one type of error.
   */
  failFast<A, E, R>(operation: string, call: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const last = this.failing.get(operation)
      if (last === undefined) return call
      if (now < this.nextTry) return Effect.fail(last.error as E)
      this.nextTry = Number.POSITIVE_INFINITY
      const ended = Effect.map(Clock.currentTimeMillis, (end) => {
        this.nextTry = end + tryEvery
      })
      return Effect.ensuring(call, ended)
    })
  }

  /** Reports the result of a call. `detailOf` answers `undefined` for an error that is no outage. */
  watch<A, E, R>(
    operation: string,
    call: Effect.Effect<A, E, R>,
    detailOf: (error: E) => string | undefined,
  ): Effect.Effect<A, E, R> {
    return Effect.matchEffect(call, {
      onSuccess: (answer) =>
        this.isKnown ? Effect.as(this.succeeded(operation), answer) : Effect.succeed(answer),
      onFailure: (error) => {
        const detail = detailOf(error)
        return detail === undefined
          ? Effect.fail(error)
          : Effect.zipRight(this.failed(operation, detail, error), Effect.fail(error))
      },
    })
  }

  failed(operation: string, detail: string, error: unknown = detail): Effect.Effect<void> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      if (!this.isKnown) {
        this.began = now
        this.logged = Number.NEGATIVE_INFINITY
      }
      this.failing.set(operation, { at: now, error })
      if (now - this.logged < logEvery) return Effect.void
      this.logged = now
      return Effect.annotateLogs(Effect.logWarning("server.down"), {
        server: this.server,
        detail,
        for_s: Math.round((now - this.began) / 1000),
      })
    })
  }

  succeeded(operation: string): Effect.Effect<void> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      if (!this.isKnown) return Effect.void
      this.failing.delete(operation)
      for (const [other, { at }] of this.failing) if (now - at > forgottenAfter) this.failing.delete(other)
      if (this.isKnown) return Effect.void
      return Effect.annotateLogs(Effect.logInfo("server.up"), {
        server: this.server,
        after_s: Math.round((now - this.began) / 1000),
      })
    })
  }
}
