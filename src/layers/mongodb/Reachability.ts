/**
 * Whether MongoDB answers. A call to a server that is out takes seconds to fail, so while pings in the background find
 * that it is out, calls fail at once.
 */
import { setTimeout as sleep } from "node:timers/promises"

/** A server that has answered no ping for this long is out. */
const outAfterMillis = 1_900
/** Between the beginnings of two pings. One on a dead connection may hang for longer. */
const pingEveryMillis = 1_000

export class Reachability {
  /** Why the server is out; `undefined` while it answers, as far as is known. */
  failure: unknown
  private isAsking = false
  private isClosed = false

  constructor(private readonly ping: () => Promise<unknown>) {}

  /** Call when the server may be out. Returns at once; the pings end when one is answered. */
  doubt(): void {
    if (this.isAsking || this.isClosed) return
    this.isAsking = true
    void this.askUntilAnswered()
  }

  close(): void {
    this.isClosed = true
  }

  private async askUntilAnswered(): Promise<void> {
    const began = performance.now()
    let answered = false
    let error: unknown = new Error("no answer")
    while (!answered && !this.isClosed) {
      const nextPing = sleep(pingEveryMillis)
      const answer = this.ping().then(
        () => {
          answered = true
        },
        (cause) => {
          error = cause
        },
      )
      // An answer ends the wait, a refusal does not.
      await Promise.race([nextPing, answer.then(() => (answered ? undefined : nextPing))])
      if (!answered && performance.now() - began >= outAfterMillis) this.failure = error
    }
    this.failure = undefined
    this.isAsking = false
  }
}
