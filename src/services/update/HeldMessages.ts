/** The messages that a worker holds unsettled, and which of them it handles next. Synchronous. */
import type { Interaction } from "../model/Interaction.ts"
import type { Delivery } from "../ports/InteractionQueue.ts"
import type { BatchWindow } from "./BatchWindow.ts"
import type { OutageState } from "./OutageState.ts"
import { interactionOf, type ReceivedMessage } from "./ReceivedMessage.ts"

export interface Work {
  readonly batch: ReadonlyArray<ReceivedMessage>
  /** The batch is one message, which shows whether the dependency is back. */
  readonly probe: boolean
}

const isSearch = (message: ReceivedMessage): boolean => interactionOf(message)?.event_type === "search"

export class HeldMessages {
  /** In order of arrival. */
  private ready: Array<ReceivedMessage> = []
  /** Searches that have to wait for the embedder, in order of arrival. */
  private searches: Array<ReceivedMessage> = []

  constructor(
    private readonly window: BatchWindow | undefined,
    private readonly needsEmbedder: (interaction: Interaction) => boolean,
  ) {}

  /** Messages outside the window. */
  get size(): number {
    return this.ready.length + this.searches.length
  }

  get isEmpty(): boolean {
    return this.size === 0 && this.window?.closes === undefined
  }

  get readyCount(): number {
    return this.ready.length
  }

  /** A poison-message candidate does not wait for the window, because other messages may wait for it. */
  add(messages: ReadonlyArray<ReceivedMessage>, now: number): void {
    for (const message of messages)
      if (this.window === undefined || message.delivery.quarantined || message.decoded === undefined)
        this.admit(message)
      else this.window.add(message, now)
  }

  /** Takes messages back that wait for a dependency; they stay ahead of those that came later. */
  putBack(messages: ReadonlyArray<ReceivedMessage>): void {
    this.ready = messages.concat(this.ready)
  }

  /** Drops all messages outside the window that the consumer does not hold. */
  dropUnless(holds: (delivery: Delivery) => boolean): void {
    this.ready = this.ready.filter(({ delivery }) => holds(delivery))
    this.searches = this.searches.filter(({ delivery }) => holds(delivery))
  }

  /** Admits the messages of closed windows. `least` messages leave their windows early if all messages wait in windows. */
  closeWindows(now: number, least: number): void {
    for (const message of this.window?.take(now, this.size === 0 ? least : 0) ?? []) this.admit(message)
  }

  /** The next batch, at most `limit` messages; in an outage the next probe, when it is due. */
  take(state: OutageState, limit: number, now: number): Work | undefined {
    if (state._tag !== "Working") this.ready = this.ready.concat(this.searches.splice(0))
    if (state._tag === "Working" || state._tag === "Stopping") return this.takeBatch(limit, () => true)
    const waits = (message: ReceivedMessage) => state._tag === "ProbingAll" || isSearch(message)
    const probe = state.nextProbe <= now ? this.takeProbe(waits) : undefined
    return probe ?? this.takeBatch(limit, (message) => !waits(message))
  }

  takeSearches(limit: number): ReadonlyArray<ReceivedMessage> {
    return this.searches.splice(0, limit)
  }

  /** When there is something to do, if no message comes before (Unix ms). */
  wakeAt(state: OutageState): number {
    const never = Number.POSITIVE_INFINITY
    const probe = this.ready.length > 0 && "nextProbe" in state ? state.nextProbe : never
    return Math.min(this.window?.closes ?? never, probe)
  }

  private admit(message: ReceivedMessage): void {
    const interaction = interactionOf(message)
    const waits = interaction?.event_type === "search" && this.needsEmbedder(interaction)
    const lane = waits ? this.searches : this.ready
    lane.push(message)
  }

  private takeBatch(limit: number, mayTake: (message: ReceivedMessage) => boolean): Work | undefined {
    const batch = this.ready.filter(mayTake).slice(0, limit)
    if (batch.length === 0) return undefined
    const taken = new Set(batch)
    this.ready = this.ready.filter((message) => !taken.has(message))
    return { batch, probe: false }
  }

  /** The message with the fewest attempts, so that the messages of a backlog share the attempts. */
  private takeProbe(mayTake: (message: ReceivedMessage) => boolean): Work | undefined {
    let probe: ReceivedMessage | undefined
    for (const message of this.ready)
      if (
        mayTake(message) &&
        (probe === undefined || message.delivery.retryCount < probe.delivery.retryCount)
      )
        probe = message
    if (probe === undefined) return undefined
    this.ready = this.ready.filter((message) => message !== probe)
    return { batch: [probe], probe: true }
  }
}
