/**
 * The cadence of a lane whose items share work: a round begins no sooner than an interval after the round before. The first
 * item after a quiet moment is not delayed. Under steady load the items of an interval share what a round costs.
 */
import { Effect } from "effect"

export class Cadence {
  /** When the next round may begin (monotonic ms). */
  private due = 0
  private wake = () => {}

  /** @param interval in ms; 0 lets every round begin at once */
  constructor(private readonly interval: number) {}

  private get wait(): number {
    return this.due - performance.now()
  }

  get isDue(): boolean {
    return this.wait <= 0
  }

  begin(): void {
    this.due = performance.now() + this.interval
  }

  /** Lets the next round begin now: there is enough for it, or no time to wait. */
  hurry(): void {
    this.due = 0
    this.wake()
  }

  /** Waits until a round may begin. */
  readonly untilDue: Effect.Effect<void> = Effect.suspend(() =>
    this.isDue
      ? Effect.void
      : Effect.async<void>((resume) => {
          const timer = setTimeout(() => this.wake(), this.wait)
          const stop = () => {
            clearTimeout(timer)
            this.wake = () => {}
          }
          this.wake = () => {
            stop()
            resume(Effect.void)
          }
          return Effect.sync(stop)
        }),
  )
}
