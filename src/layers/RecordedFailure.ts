/** How a message failed, as both queues store it. */
import { hostname } from "node:os"
import type { Failure } from "../services/ports/InteractionQueue.ts"

export interface RecordedFailure {
  readonly error: string
  /** At most 1 KiB. */
  readonly message: string
  readonly firstFailedAt: string
  readonly lastFailedAt: string
  /** {@link workerName} */
  readonly worker: string
}

/** Host name and process id. */
export const workerName = `${hostname()}:${process.pid}`
const longestMessageBytes = 1024

/** Cuts before a character that does not fit. */
const truncated = (message: string): string =>
  new TextDecoder().decode(Buffer.from(message).subarray(0, longestMessageBytes), { stream: true })

/** `firstFailedAt`: of an earlier failure, if any. `now`: Unix ms. */
export const recorded = (
  { error, message }: Failure,
  firstFailedAt: string | null | undefined,
  now: number,
): RecordedFailure => {
  const at = new Date(now).toISOString()
  return {
    error,
    message: truncated(message),
    firstFailedAt: firstFailedAt ?? at,
    lastFailedAt: at,
    worker: workerName,
  }
}
