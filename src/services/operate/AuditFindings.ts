/** What an audit has found: counts, details, and interactions that nothing explains yet. */
import type { Recorded } from "../model/Erasure.ts"
import type { EventType, UserId } from "../model/Interaction.ts"
import type { LogRow } from "../ports/InteractionLog.ts"

/** One interaction about which log and embedding disagree, or about which they will agree later. */
export interface Finding {
  readonly user_id: UserId
  /** Only the first 32 digits of an extra interaction: the record keeps no more. */
  readonly message_id: string
  readonly state: "missing" | "extra" | "not_erased" | "in_flight" | "dead" | "skipped"
  readonly event_type: EventType | null
  readonly product_id: string | null
  readonly occurred_at: string | null
}

export interface AuditReport {
  /** Users with interactions in the log or in an embedding: none if the given user is unknown. */
  readonly users: number
  /** Users without missing, extra and unerased interactions. */
  readonly consistent: number
  /** In the log or pruned, not applied, and explained by none of the states below. */
  readonly missing: number
  /** Applied but not in the log, or counted in `event_count` without an id. */
  readonly extra: number
  /** In the log, though an erasure of the user covers them: it was not finished, or the log was restored. */
  readonly not_erased: number
  /** Waiting in the outbox or in a queue. */
  readonly in_flight: number
  /** In the queue `failed`. */
  readonly dead: number
  /** The product has no embedding, or had none when a worker received the interaction: a replay applies the latter. */
  readonly skipped: number
  /** At most {@link mostDetails} of each state. */
  readonly details?: ReadonlyArray<Finding>
}

export const mostDetails = 10_000

/** Unexplained interactions kept to be checked again; of any beyond these only the number is known. */
const mostUnexplained = 200_000

/** `user_id` is that of the person. */
export interface Unapplied extends Omit<Finding, "state">, Recorded {
  readonly posted_as: UserId
}

export const toUnapplied = ({ id, interaction, recordedAt }: LogRow, user_id: UserId): Unapplied => {
  const { event_type, message_id, occurred_at, product_id, user_id: posted_as } = interaction
  return { user_id, posted_as, message_id, event_type, product_id, occurred_at, recordedAt, logId: id }
}

export class Findings {
  users = 0
  /** Users with rows that an erasure covers: it may be in progress, so they are audited again at the end. */
  readonly behindErasures: Array<UserId> = []
  /** Published, not applied, and not explained by anything checked so far. */
  unexplained: Array<Unapplied> = []
  /** How many more there were than {@link mostUnexplained}. */
  private beyond = 0
  private readonly counts = { missing: 0, extra: 0, not_erased: 0, in_flight: 0, dead: 0, skipped: 0 }
  private readonly inconsistent = new Set<UserId>()
  private readonly details: Array<Finding> | undefined

  constructor(withDetails: boolean) {
    this.details = withDetails ? [] : undefined
  }

  add(state: Finding["state"], { logId: _, posted_as: __, recordedAt: ___, ...facts }: Unapplied): void {
    this.counts[state] += 1
    if (state === "missing" || state === "extra" || state === "not_erased")
      this.inconsistent.add(facts.user_id)
    if (this.counts[state] <= mostDetails) this.details?.push({ ...facts, state })
  }

  /** Of an interaction without a row. */
  addUnknown(state: "missing" | "extra", user_id: UserId, message_id: string): void {
    const unknown = { event_type: null, product_id: null, occurred_at: null, logId: null, recordedAt: 0 }
    this.add(state, { user_id, posted_as: user_id, message_id, ...unknown })
  }

  addUnexplained(row: Unapplied): void {
    if (this.unexplained.length < mostUnexplained) this.unexplained.push(row)
    else {
      this.beyond += 1
      this.inconsistent.add(row.user_id)
    }
  }

  get unexplainedCount(): number {
    return this.unexplained.length + this.beyond
  }

  /** Of the unexplained interactions at most `waiting` are in flight. The others are missing. */
  conclude(waiting: number): void {
    // A queue delivers its oldest message first, so a missing interaction is more likely an old one.
    this.unexplained.sort((a, b) => a.recordedAt - b.recordedAt)
    const missing = Math.max(0, this.unexplainedCount - waiting)
    const missingBeyond = Math.min(missing, this.beyond)
    for (const [index, row] of this.unexplained.entries())
      this.add(index < missing - missingBeyond ? "missing" : "in_flight", row)
    this.counts.missing += missingBeyond
    this.counts.in_flight += this.beyond - missingBeyond
  }

  report(): AuditReport {
    return {
      users: this.users,
      consistent: this.users - this.inconsistent.size,
      ...this.counts,
      ...(this.details && { details: this.details }),
    }
  }
}
