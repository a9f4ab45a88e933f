/**
 * Users' records as this worker last wrote them, so that the next batch need not read them. If another worker has
 * changed a record since, the next write fails the version check. Then workers write the same users, and the cache
 * pauses for a while: a read costs less than a lost write.
 */
import type { UserId } from "../model/Interaction.ts"
import type { UserRecord } from "../ports/UserEmbeddings.ts"

/** 14 KB each at 1536 dimensions. */
const capacity = 4_000
const pauseMillis = 10_000

export class UserRecordCache {
  /** In order of use, oldest first. */
  private readonly records = new Map<UserId, UserRecord>()
  /** Unix ms. */
  private pausedUntil = 0

  /** Removes and returns the cached records of these users. A successful write puts them back. */
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

  put(record: UserRecord, now: number): void {
    if (now < this.pausedUntil) return
    this.records.set(record.user_id, record)
    for (const oldest of this.records.keys()) {
      if (this.records.size <= capacity) break
      this.records.delete(oldest)
    }
  }

  /** The write of a taken record lost the version check. If this worker wrote the newer record, the cache stays. */
  invalidate(record: UserRecord | undefined, now: number): void {
    if (record === undefined) return
    if ((this.records.get(record.user_id)?.version ?? 0) > record.version) return
    this.pausedUntil = now + pauseMillis
    this.records.clear()
  }
}
