/** The messages that a worker holds unsettled, and which of them it handles next. Synchronous. */
import { Array as Arr } from "effect"
import { type Interaction, isRetraction } from "../model/Interaction.ts"
import type { Delivery } from "../ports/InteractionQueue.ts"
import type { BatchWindow } from "./BatchWindow.ts"
import { isProbeDue, type OutageState } from "./OutageState.ts"
import { interactionOf, type ReceivedMessage } from "./ReceivedMessage.ts"

export interface Work {
  readonly batch: ReadonlyArray<ReceivedMessage>
  /** The batch is one message, which shows whether the dependency is back. */
  readonly probe: boolean
}

/** What to do next. */
interface Next {
  readonly work: Work | undefined
  /** Messages that wait for a dependency. They are not held meanwhile. */
  readonly waiting: ReadonlyArray<ReceivedMessage>
}

interface WaitingSearch {
  readonly message: ReceivedMessage
  /** When it arrived, Unix ms. */
  readonly since: number
}

/** How soon a probe is asked for again, in case its delivery was lost. */
const askAgainMillis = 1_000
/** The embedder is slow when the oldest search of the lane has waited for this time: others must not fill the prefetch. */
const slowLaneMillis = 5_000
/** How long a search that was set aside before waits in the lane. Nothing may be held for much longer: see `consumer_timeout`. */
const longestWaitMillis = 10_000
/** How often the searches that wait in the lane are looked at. */
const laneCheckMillis = 1_000

export class HeldMessages {
  /** In order of arrival. */
  private ready: Array<ReceivedMessage> = []
  /** Searches that have to wait for the embedder, in order of arrival. */
  private searches: Array<WaitingSearch> = []
  /** When the oldest search of the batch in the lane arrived, Unix ms. */
  private laneSince: number | undefined

  constructor(
    private readonly window: BatchWindow | undefined,
    private readonly needsEmbedder: (interaction: Interaction) => boolean,
  ) {}

  /** All messages, those in the window among them. */
  get count(): number {
    return this.size + (this.window?.size ?? 0)
  }

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

  /** Whether the search lane handles a batch: its settlement will make room for more messages. */
  get laneIsBusy(): boolean {
    return this.laneSince !== undefined
  }

  /** A poison-message candidate does not wait for the window, because other messages may wait for it. */
  add(messages: ReadonlyArray<ReceivedMessage>, now: number): void {
    for (const message of messages)
      if (this.window === undefined || message.delivery.quarantined || message.decoded === undefined)
        this.admit(message, now)
      else this.window.add(message, now)
  }

  /** Drops all messages outside the window that the consumer does not hold. */
  dropUnless(holds: (delivery: Delivery) => boolean): void {
    this.ready = this.ready.filter(({ delivery }) => holds(delivery))
    this.searches = this.searches.filter(({ message }) => holds(message.delivery))
  }

  /** Admits the messages of closed windows. `least` messages leave their windows early if all messages wait in windows. */
  closeWindows(now: number, least: number): void {
    for (const message of this.window?.take(now, this.size === 0 ? least : 0) ?? []) this.admit(message, now)
  }

  /**
   * The next batch, at most `limit` messages; in an outage the next probe, when it is due. `draining`: quarantined messages
   * wait until everything is settled.
   */
  take(state: OutageState, limit: number, now: number, draining: boolean): Next {
    if (state._tag === "Working")
      return { work: this.takeBatch(limit), waiting: this.takeOverdue(now, draining) }
    this.ready = this.ready.concat(this.searches.map(({ message }) => message))
    this.searches = []
    const [goesOn, waiting] = Arr.partition(this.ready, (message) => this.waits(message, state))
    this.ready = goesOn
    // A message that may kill its worker is no good probe.
    const probe = isProbeDue(state, now)
      ? (waiting.find(({ delivery }) => !delivery.quarantined) ?? waiting[0])
      : undefined
    if (probe === undefined) return { work: this.takeBatch(limit), waiting }
    return { work: { batch: [probe], probe: true }, waiting: waiting.filter((one) => one !== probe) }
  }

  /** The next batch of searches that wait for the embedder. */
  takeSearches(state: OutageState, limit: number): ReadonlyArray<ReceivedMessage> {
    const count = state._tag === "Working" ? limit : 0
    const batch = this.searches.slice(0, count)
    this.searches = this.searches.slice(count)
    this.laneSince = batch[0]?.since
    return batch.map(({ message }) => message)
  }

  /** The batch of the lane is settled. */
  laneEnds(): void {
    this.laneSince = undefined
  }

  /** When there is something to do, if no message comes before (Unix ms). */
  wakeAt(state: OutageState, now: number): number {
    const never = Number.POSITIVE_INFINITY
    const probe = !("nextProbe" in state)
      ? never
      : isProbeDue(state, now)
        ? now + askAgainMillis
        : state.nextProbe
    const laneCheck = this.searches.length > 0 ? now + laneCheckMillis : never
    return Math.min(this.window?.closes ?? never, probe, laneCheck)
  }

  /** Whether a message can't be handled now. An invalid message needs no dependency. */
  private waits(message: ReceivedMessage, state: OutageState): boolean {
    const interaction = interactionOf(message)
    if (interaction === undefined) return false
    if (state._tag === "ProbingSearches") return this.isSlow(interaction)
    return state._tag === "ProbingAll" || (state._tag === "Stopping" && state.reason !== undefined)
  }

  private isSlow(interaction: Interaction): boolean {
    return (
      (interaction.event_type === "search" || isRetraction(interaction)) && this.needsEmbedder(interaction)
    )
  }

  private admit(message: ReceivedMessage, now: number): void {
    const interaction = interactionOf(message)
    if (interaction === undefined || !this.isSlow(interaction)) this.ready.push(message)
    else this.searches.push({ message, since: now })
  }

  /** Takes searches out of a slow lane. Those that were set aside before may wait longer: they keep no others waiting. */
  private takeOverdue(now: number, draining: boolean): ReadonlyArray<ReceivedMessage> {
    const oldest = this.laneSince ?? this.searches[0]?.since ?? now
    if (now - oldest < slowLaneMillis) return []
    const isOverdue = ({ message: { delivery }, since }: WaitingSearch) =>
      draining || !delivery.wasSetAside || now - since >= longestWaitMillis
    const [stay, overdue] = Arr.partition(this.searches, isOverdue)
    this.searches = stay
    return overdue.map(({ message }) => message)
  }

  private takeBatch(limit: number): Work | undefined {
    return this.ready.length === 0 ? undefined : { batch: this.ready.splice(0, limit), probe: false }
  }
}
