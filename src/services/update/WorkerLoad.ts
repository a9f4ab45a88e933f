/** What a worker has in hand and has done, for its reports. Synchronous. */
import type { Settled } from "../ports/InteractionQueue.ts"

const never = Number.POSITIVE_INFINITY

export class WorkerLoad {
  /** Messages acknowledged since the worker started. */
  acknowledged = 0
  /** Messages in the batches that are being handled. */
  inBatches = 0
  /** When the oldest event that was given back was recorded, Unix ms. */
  private oldestGivenBack = never

  settled(settled: ReadonlyArray<Settled>): void {
    for (const [{ recordedAt }, { _tag }] of settled)
      if (_tag === "Ack") this.acknowledged += 1
      else if (_tag === "Return" || _tag === "SetAside")
        this.oldestGivenBack = Math.min(this.oldestGivenBack, recordedAt ?? never)
  }

  /** The oldest event given back since the last call, or since the outage began. What is given back in an outage waits. */
  takeOldestGivenBack(isOutage: boolean): number {
    const oldest = this.oldestGivenBack
    if (!isOutage) this.oldestGivenBack = never
    return oldest
  }
}
