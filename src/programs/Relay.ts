/** Drains the outbox, publishing rows that were not published right after their commit, and completes erasures. */
import { Layer } from "effect"
import * as ErasureSweep from "../services/operate/ErasureSweep.ts"
import * as OutboxRelay from "../services/record/OutboxRelay.ts"

export const layer = Layer.merge(OutboxRelay.draining, ErasureSweep.sweeping).pipe(
  Layer.provide(OutboxRelay.layer),
)
