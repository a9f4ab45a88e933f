/** Drains the outbox: publishes rows that were not published right after their commit. */
import { Layer } from "effect"
import * as OutboxRelay from "../services/record/OutboxRelay.ts"

export const layer = OutboxRelay.draining.pipe(Layer.provide(OutboxRelay.layer))
