/** Publishes rows of the outbox that were not published after their commit. */
import { Layer } from "effect"
import * as OutboxRelay from "../services/record/OutboxRelay.ts"

export const layer = OutboxRelay.sweeping.pipe(Layer.provide(OutboxRelay.layer))
