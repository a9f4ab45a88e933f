/** Which messages may kill their worker, and what becomes of them. Each is handled apart from all other messages. */
import { DeadLetter, type Delivery, Quarantine, type Settlement } from "../ports/InteractionQueue.ts"

/** A message that was redelivered so often, without being settled, may be what kills its worker. */
export const quarantineAfterRedeliveries = 3
/** How often a quarantined message is handled, one at a time, before it becomes a dead letter `crash_loop`. */
const maxQuarantineAttempts = 10

/**
 * Whether a message may kill its worker, and must go to quarantine before anything is done with it. Retry queues return
 * messages to the main queue: one that was in quarantine before goes back there.
 */
export const isPoisonCandidate = ({
  quarantineAttempts,
  quarantined,
  redeliveries,
}: Pick<Delivery, "quarantined" | "quarantineAttempts" | "redeliveries">): boolean =>
  quarantined ? redeliveries > 0 : redeliveries >= quarantineAfterRedeliveries || quarantineAttempts > 0

/** The settlement of a poison-message candidate, and of a message whose batch threw an unexpected error. */
export const quarantineSettlement = ({
  quarantineAttempts,
  quarantined,
}: Pick<Delivery, "quarantined" | "quarantineAttempts">): Settlement =>
  quarantined && quarantineAttempts >= maxQuarantineAttempts
    ? DeadLetter({
        error: "crash_loop",
        message: `its worker died ${quarantineAttempts} times while handling only this message`,
      })
    : Quarantine
