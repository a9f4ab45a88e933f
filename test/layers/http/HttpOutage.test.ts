/** The API while none of its servers answers: it starts, its probes answer at once, and it tells strangers no details. */
import { expect } from "bun:test"
import { HttpServer } from "@effect/platform"
import { Duration, Effect, Layer } from "effect"
import * as Stack from "../../../src/layers/Stack.ts"
import * as Api from "../../../src/programs/Api.ts"
import { effectTest } from "../../support/effect.ts"
import { quiet, variables } from "../../support/stacks.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

/** An address that accepts connections and never answers, like a server that is stopped by SIGSTOP. */
const frozenAddress = Effect.map(tcpProxy("http://127.0.0.1:1"), (proxy) => {
  proxy.freeze()
  return `127.0.0.1:${proxy.port}`
})

const withFrozenServers = Layer.unwrapScoped(
  Effect.map(frozenAddress, (address) =>
    Api.layer.pipe(
      Layer.provide(Stack.layer),
      Layer.provide(
        variables({
          MYSQL_URL: `mysql://shop_writer:s3cret@${address}/events`,
          RABBITMQ_DSN: `amqp://shop:s3cret@${address}`,
          MONGODB_URL: `mongodb://shop:s3cret@${address}`,
          API_TOKENS: "token",
          API_HOST: "127.0.0.1",
          API_PORT: "0",
        }),
      ),
      Layer.provideMerge(quiet),
    ),
  ),
)

/** Milliseconds. A probe takes less than 100 on a quiet machine; a probe that waits takes at least 3 s. */
const atOnce = 1_000

effectTest(
  "with all servers frozen, no probe waits, and only a token shows details",
  () =>
    Effect.gen(function* () {
      const { address } = yield* HttpServer.HttpServer
      const base = address._tag === "TcpAddress" ? `http://127.0.0.1:${address.port}` : ""
      const get = (path: string, headers = {}) =>
        Effect.timed(
          Effect.promise(async () => {
            const response = await fetch(`${base}${path}`, { headers })
            return { status: response.status, text: await response.text() }
          }),
        )
      for (let probe = 0; probe < 10; probe++) {
        const [took, { status, text }] = yield* get("/readyz")
        expect(Duration.toMillis(took)).toBeLessThan(atOnce)
        expect(status).toBe(503)
        expect(JSON.parse(text)).toEqual({
          status: "unavailable",
          dependencies: {
            mysql: { status: "down" },
            rabbitmq: { status: "down" },
            mongodb: { status: "down" },
            local: { status: "up" },
          },
        })
        expect((yield* get("/livez"))[1].status).toBe(200)
      }
      const [took, { text }] = yield* get("/readyz", { authorization: "Bearer token" })
      expect(Duration.toMillis(took)).toBeLessThan(atOnce)
      expect(JSON.parse(text).dependencies.mysql).toMatchObject({
        status: "down",
        detail: expect.any(String),
      })
      expect(text).not.toContain("s3cret")
    }).pipe(Effect.provide(withFrozenServers)),
  30_000,
)
