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

test("what was given back in an outage waits until its end, and only acknowledged messages are done", () => {
  const load = new WorkerLoad()
  load.settled([
    [recorded(5), Ack],
    [recorded(6), DeadLetter({ error: "e", message: "" })],
    [recorded(30), Return],
    [recorded(20), SetAside],
    [recorded(null), SetAside],
  ])
  expect(load.acknowledged).toBe(1)
  expect([load.takeOldestGivenBack(true), load.takeOldestGivenBack(true)]).toEqual([20, 20])
  expect([load.takeOldestGivenBack(false), load.takeOldestGivenBack(false)]).toEqual([20, Infinity])
})
