/** Intake: what is decoded when it arrives. */
import { expect, test } from "bun:test"
import { Effect, Either, Logger } from "effect"
import { defaults } from "../../../src/services/model/EventTypes.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import { interactionOf, receive } from "../../../src/services/update/ReceivedMessage.ts"
import { delivery } from "../../support/delivery.ts"

const interaction = Interaction.make({
  user_id: "u",
  event_type: "search",
  search_phrase: "garden chairs",
  // Later than any clock: the updater checks that, when it handles the message.
  occurred_at: "2999-01-01T00:00:00.000Z",
  metadata: {},
})
const body = encodeMessage(interaction)

test("messages are decoded, invalid ones with their error", async () => {
  const [good, bad] = await Effect.runPromise(
    receive([delivery(body), delivery(Buffer.from("no JSON"))], defaults),
  )
  expect(good?.decoded).toEqual(Either.right(interaction))
  expect(bad?.decoded?.pipe(Either.flip, Either.getOrThrow)).toMatchObject({ reason: "not_json" })
  expect([good, bad].map((message) => interactionOf(message!))).toEqual([interaction, undefined])
})

test("a poison-message candidate is not decoded", async () => {
  const [candidate] = await Effect.runPromise(receive([delivery(body, { redeliveries: 3 })], defaults))
  expect(candidate?.decoded).toBeUndefined()
})

test("when decoding throws, the messages become candidates for quarantine", async () => {
  const broken = { ...delivery(body), body: undefined as unknown as Uint8Array }
  const received = await Effect.runPromise(
    receive([delivery(body), broken], defaults).pipe(
      Effect.provide(Logger.replace(Logger.defaultLogger, Logger.none)),
    ),
  )
  expect(received.map(({ decoded }) => decoded)).toEqual([undefined, undefined])
})
