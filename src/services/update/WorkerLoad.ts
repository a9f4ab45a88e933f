/** What a worker has in hand and has done, for its reports. Synchronous. */
import type { Settled } from "../ports/InteractionQueue.ts"

export class WorkerLoad {
  /** Messages acknowledged since the worker started. */
  acknowledged = 0
  /** Messages in the batches that are being handled. */
  inBatches = 0
  /** When the oldest event that was given back since the last outage began was recorded, Unix ms. */
  oldestGivenBack: number | undefined

  settled(settled: ReadonlyArray<Settled>): void {
    for (const [{ recordedAt }, { _tag }] of settled)
      if (_tag === "Ack") this.acknowledged += 1
      else if (recordedAt !== null && (_tag === "Return" || _tag === "SetAside"))
        this.oldestGivenBack = Math.min(this.oldestGivenBack ?? recordedAt, recordedAt)
  }

  /** What was given back before, because searches were slow, is no longer known to wait. */
  outageBegins(): void {
    this.oldestGivenBack = undefined
  }
}
