/** Intake: each message is decoded once, when it arrives. */
import { Effect, Either } from "effect"
import type { EventTypes } from "../model/EventTypes.ts"
import type { Interaction } from "../model/Interaction.ts"
import { decodeMessage, type InvalidMessage } from "../model/UpdateMessage.ts"
import type { Delivery } from "../ports/InteractionQueue.ts"

import * as Telemetry from "../Telemetry.ts"
import { isPoisonCandidate } from "./Quarantine.ts"

export interface DecodedMessage {
  readonly delivery: Delivery
  /** Not yet checked against the clock: EmbeddingUpdater refuses interactions of the future. */
  readonly decoded: Either.Either<Interaction, InvalidMessage>
}

/** A poison-message candidate stays undecoded: decoding may be what kills its worker. */
export type ReceivedMessage = DecodedMessage | { readonly delivery: Delivery; readonly decoded: undefined }

export const isDecoded = (message: ReceivedMessage): message is DecodedMessage =>
  message.decoded !== undefined

export const interactionOf = ({ decoded }: ReceivedMessage): Interaction | undefined =>
  decoded !== undefined && Either.isRight(decoded) ? decoded.right : undefined

/** A message that throws would have killed a less careful worker. */
export const logDefect = (count: number, defect: unknown) =>
  Effect.annotateLogs(Effect.logError("batch.threw"), {
    count,
    error: Telemetry.errorType(defect),
    detail: String(defect),
  })

/** Decodes deliveries. When one of them throws, all of them become poison-message candidates. */
export const receive = (
  deliveries: ReadonlyArray<Delivery>,
  types: EventTypes,
): Effect.Effect<ReadonlyArray<ReceivedMessage>> =>
  Effect.sync(() =>
    deliveries.map((delivery) => ({
      delivery,
      decoded: isPoisonCandidate(delivery) ? undefined : decodeMessage(delivery.body, types),
    })),
  ).pipe(
    Effect.catchAllDefect((defect) =>
      Effect.as(
        logDefect(deliveries.length, defect),
        deliveries.map((delivery) => ({ delivery, decoded: undefined })),
      ),
    ),
  )
