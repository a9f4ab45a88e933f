/**
 * Items that one fiber handles in the order of arrival, as many at once as fit together. Callers add items without a
 * fiber of their own. Effect's `Mailbox` takes a number of items rather than a weight, and made the recorder cost 7 %
 * more CPU.
 */
import { Effect } from "effect"
import { Cadence, type Pace } from "../Cadence.ts"

export class WorkQueue<Item> {
  private items: Array<Item> = []
  private total = 0
  private closed = false
  private readonly wake = Effect.unsafeMakeLatch(false)

  private readonly cadence: Cadence
  private readonly full: number
  private readonly weigh: (item: Item) => number

  constructor(options: {
    /** Of the rounds of {@link consume}. */
    readonly pace: Pace
    /** With this weight a round begins at once. */
    readonly full: number
    readonly weigh?: (item: Item) => number
  }) {
    this.cadence = new Cadence(options.pace)
    this.full = options.full
    this.weigh = options.weigh ?? (() => 1)
  }

  /** The weight of all waiting items. */
  get weight(): number {
    return this.total
  }

  get isClosed(): boolean {
    return this.closed
  }

  offer(item: Item): void {
    this.items.push(item)
    this.total += this.weigh(item)
    if (this.total >= this.full) this.cadence.hurry()
    this.wake.unsafeOpen()
  }

  /** Removes the oldest items that weigh `most` together, or a single heavier one. */
  take(most: number): ReadonlyArray<Item> {
    let count = 0
    let weight = 0
    for (const item of this.items) {
      const next = weight + this.weigh(item)
      if (count > 0 && next > most) break
      weight = next
      count += 1
    }
    return this.remove(count, weight)
  }

  /** Removes the oldest items that satisfy the predicate, up to the first that does not. */
  takeWhile(predicate: (item: Item) => boolean): ReadonlyArray<Item> {
    const other = this.items.findIndex((item) => !predicate(item))
    const count = other === -1 ? this.items.length : other
    const weight = this.items.slice(0, count).reduce((sum, item) => sum + this.weigh(item), 0)
    return this.remove(count, weight)
  }

  private remove(count: number, weight: number): ReadonlyArray<Item> {
    if (count === 0) return []
    const taken = this.items.slice(0, count)
    this.items = this.items.slice(count)
    this.total -= weight
    return taken
  }

  /** Runs `handle`, which takes items, in rounds while items wait. Ends when the queue is closed and empty. */
  consume<E, R>(handle: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> {
    const { cadence, wake } = this
    return Effect.whileLoop({
      while: () => !this.closed || this.items.length > 0,
      body: () => {
        if (this.items.length === 0) {
          wake.unsafeClose()
          return wake.await
        }
        if (!cadence.isDue && !this.closed && this.total < this.full) return cadence.untilDue
        cadence.begin(this.total)
        return handle
      },
      step: () => {},
    })
  }

  /** Lets {@link consume} end after the waiting items. */
  readonly close: Effect.Effect<void> = Effect.sync(() => {
    this.closed = true
    this.cadence.hurry()
    this.wake.unsafeOpen()
  })
}
