/**
 * The cadence of a lane whose items share work: a round begins no sooner than an interval after the round before. The first
 * item after a quiet moment is not delayed. Under steady load the items of an interval share what a round costs.
 */
import { Effect } from "effect"

export interface Pace {
  /** In ms; 0 lets every round begin at once. */
  readonly interval: number
  /** The interval from a rate of items on that makes larger rounds pay. */
  readonly busy?: { readonly perSecond: number; readonly interval: number }
}

export class Cadence {
  private began = 0
  /** When the next round may begin (monotonic ms). */
  private due = 0
  private wake = () => {}

  constructor(private readonly pace: Pace) {}

  private get wait(): number {
    return Math.max(0, this.due - performance.now())
  }

  get isDue(): boolean {
    return this.wait === 0
  }

  /** Begins a round with the items that came since the round before. */
  begin(items = 0): void {
    const { busy, interval } = this.pace
    const now = performance.now()
    const isBusy = busy !== undefined && items * 1_000 >= busy.perSecond * (now - this.began)
    this.began = now
    this.due = now + (isBusy ? busy.interval : interval)
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
