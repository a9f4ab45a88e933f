/** The HTTP API beside a worker and the audit, in the process of the test. */
import { HttpServer } from "@effect/platform"
import { Effect, Layer } from "effect"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Auditor from "../../src/services/operate/Auditor.ts"
import * as EventVectors from "../../src/services/update/EventVectors.ts"
import type { embedded } from "./stacks.ts"

/** Sends a request with a JSON body. */
export const call = (method: "GET" | "POST" | "PUT" | "DELETE", path: string, body?: unknown) =>
  Effect.gen(function* () {
    const { address } = yield* HttpServer.HttpServer
    const port = address._tag === "TcpAddress" ? address.port : 0
    return yield* Effect.promise(async () => {
      const response = await fetch(`http://127.0.0.1:${port}${path}`, {
        method,
        headers: { "content-type": "application/json" },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      })
      const text = await response.text()
      // biome-ignore lint/suspicious/noExplicitAny: the tests look into answers of any shape
      const json: any = text === "" ? null : JSON.parse(text)
      return { status: response.status, json }
    })
  })

export const apiAndWorker = (stack: ReturnType<typeof embedded>) =>
  Layer.mergeAll(Api.layer, Worker.layer, Layer.provide(Auditor.layer, EventVectors.layer)).pipe(
    Layer.provideMerge(EventVectors.layer),
    Layer.provideMerge(stack),
  )
