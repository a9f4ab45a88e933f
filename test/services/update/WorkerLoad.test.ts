/** What a worker reports of the messages that it has settled. */
import { expect, test } from "bun:test"
import {
  Ack,
  DeadLetter,
  type Delivery,
  Return,
  SetAside,
} from "../../../src/services/ports/InteractionQueue.ts"
import { WorkerLoad } from "../../../src/services/update/WorkerLoad.ts"

const recorded = (recordedAt: number | null) => ({ recordedAt }) as Delivery

test("the oldest event that was given back is known since the outage began, and only acknowledged messages are done", () => {
  const load = new WorkerLoad()
  load.settled([
    [recorded(5), Ack],
    [recorded(6), DeadLetter({ error: "e", message: "" })],
    [recorded(30), Return],
    [recorded(20), SetAside],
    [recorded(null), SetAside],
  ])
  expect(load.acknowledged).toBe(1)
  expect(load.oldestGivenBack).toBe(20)
  load.outageBegins()
  expect(load.oldestGivenBack).toBeUndefined()
})
