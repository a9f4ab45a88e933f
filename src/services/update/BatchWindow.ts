/**
 * The batching window: interactions of one user wait for each other from the first that arrives until the window is
 * over; it does not slide. Synchronous, and each arrival costs the same however many wait.
 */
import type { Delivery } from "../ports/InteractionQueue.ts"

/** The user that a body names, without decoding it; bodies that name none wait together. */
const userIn = ({ body }: Delivery): string =>
  /"user_id"\s*:\s*"?([^",}]{1,64})/.exec(Buffer.from(body).toString("latin1", 0, 512))?.[1] ?? ""

export class BatchWindow {
  private readonly millis: number
  /** By user, in the order in which their windows were opened. */
  private readonly waiting = new Map<
    string,
    { readonly closes: number; readonly deliveries: Array<Delivery> }
  >()

  constructor(millis: number) {
    this.millis = millis
  }

  add(deliveries: ReadonlyArray<Delivery>, now: number): void {
    for (const delivery of deliveries) {
      const user = userIn(delivery)
      const open = this.waiting.get(user)
      if (open === undefined) this.waiting.set(user, { closes: now + this.millis, deliveries: [delivery] })
      else open.deliveries.push(delivery)
    }
  }

  /** Takes what waits for users whose window is over, and of the windows that were opened next so many that it is `least`. */
  due(now: number, least = 0): ReadonlyArray<Delivery> {
    const taken: Array<Delivery> = []
    for (const [user, { closes, deliveries }] of this.waiting) {
      if (closes > now && taken.length >= least) break
      taken.push(...deliveries)
      this.waiting.delete(user)
    }
    return taken
  }

  /** When the next window is over. */
  get closes(): number | undefined {
    const [first] = this.waiting.values()
    return first?.closes
  }
}
