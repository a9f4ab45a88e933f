/**
 * Which interactions of a user an erasure covers. Rows of the log are compared by their ids, because the clocks of the
 * machines that record and erase differ.
 */

/** What a user's record keeps of the user's last erasure. */
export interface Erasure {
  /** Unix ms; 0 if the user was never erased. */
  readonly erased_at: number
  /** Rows with ids up to this one are erased. `null` if the user was never erased, or erased by release 0.1.0. */
  readonly erased_to: number | null
}

/** Where an interaction stands in the log. */
export interface Recorded {
  /** The row's id. `null` for a message that another program or release 0.1.0 published. */
  readonly logId: number | null
  /** Unix ms. */
  readonly recordedAt: number
}

/**
 * Clocks differ by less than this. A row that was recorded later than the erasure by more than this has a small id because
 * the ids began again: the log was restored from a backup, or moved to another server.
 */
export const maxClockDifference = 86_400_000

/** A message without a row id is compared by time. So are all messages of a user whom release 0.1.0 erased. */
export const isErased = ({ erased_at, erased_to }: Erasure, { logId, recordedAt }: Recorded): boolean =>
  logId === null || erased_to === null
    ? erased_at > 0 && recordedAt <= erased_at
    : logId <= erased_to && recordedAt <= erased_at + maxClockDifference

/** Whether `a` was recorded after `b`. */
export const isLater = (a: Recorded, b: Recorded): boolean =>
  a.logId !== null && b.logId !== null ? a.logId > b.logId : a.recordedAt > b.recordedAt
