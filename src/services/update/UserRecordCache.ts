/**
 * Users' records as this worker last wrote them, so that the next batch needn't read them again. A record that another
 * worker has changed since is found out by its version when it is written. Then others write the same users, and
 * keeping pauses for a while: reading costs less than writing in vain.
 */
import type { UserId } from "../model/Interaction.ts"
import type { UserRecord } from "../ports/UserEmbeddings.ts"

/** 14 KB each at 1536 dimensions. */
const mostRecords = 4_000
const pauseMillis = 10_000

export class UserRecordCache {
  /** In order of use, oldest first. */
  private readonly records = new Map<UserId, UserRecord>()
  /** Unix ms. */
  private pausedUntil = 0

  /** Those that are here; they are taken out, until a write of them succeeds. */
  take(users: ReadonlyArray<UserId>): Map<UserId, UserRecord> {
    const taken = new Map<UserId, UserRecord>()
    for (const user of users) {
      const record = this.records.get(user)
      if (record === undefined) continue
      taken.set(user, record)
      this.records.delete(user)
    }
    return taken
  }

  /** Keeps a record as it has just been written. */
  put(record: UserRecord, now: number): void {
    if (now < this.pausedUntil) return
    this.records.set(record.user_id, record)
    for (const oldest of this.records.keys()) {
      if (this.records.size <= mostRecords) break
      this.records.delete(oldest)
    }
  }

  /** A record that was taken turned out to be old, unless this worker itself has written a newer one meanwhile. */
  invalidate(record: UserRecord | undefined, now: number): void {
    if (record === undefined) return
    if ((this.records.get(record.user_id)?.version ?? 0) > record.version) return
    this.pausedUntil = now + pauseMillis
    this.records.clear()
  }
}
