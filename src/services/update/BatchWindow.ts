/**
 * The batching window. The first message of a user opens a window. Further messages of that user wait in it until it
 * closes; they do not prolong it. Adding a message costs the same however many wait.
 */
import { interactionOf, type ReceivedMessage } from "./ReceivedMessage.ts"

export class BatchWindow {
  /** By user, in the order in which the windows opened. Invalid messages share the window of user "". */
  private readonly waiting = new Map<string, { closes: number; messages: Array<ReceivedMessage> }>()

  constructor(private readonly millis: number) {}

  add(message: ReceivedMessage, now: number): void {
    const user = interactionOf(message)?.user_id ?? ""
    const open = this.waiting.get(user)
    if (open === undefined) this.waiting.set(user, { closes: now + this.millis, messages: [message] })
    else open.messages.push(message)
  }

  /** Takes the messages of all closed windows, then of the oldest open windows until there are `least` messages. */
  take(now: number, least: number): ReadonlyArray<ReceivedMessage> {
    const taken: Array<ReceivedMessage> = []
    for (const [user, { closes, messages }] of this.waiting) {
      if (closes > now && taken.length >= least) break
      taken.push(...messages)
      this.waiting.delete(user)
    }
    return taken
  }

  /** Messages in open windows. */
  get size(): number {
    return this.waiting.values().reduce((sum, { messages }) => sum + messages.length, 0)
  }

  /** When the next window closes (Unix ms). */
  get closes(): number | undefined {
    const [first] = this.waiting.values()
    return first?.closes
  }
}
