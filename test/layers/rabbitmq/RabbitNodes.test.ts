/** Several nodes in RABBITMQ_DSN. Proxies stand for nodes that do not answer. The cluster itself is in test/failures. */
import { expect } from "bun:test"
import { Duration, Effect, Layer, Option, Redacted } from "effect"
import * as Rabbit from "../../../src/layers/rabbitmq/Rabbit.ts"
import * as RabbitDependency from "../../../src/layers/rabbitmq/RabbitDependency.ts"
import * as EmbeddingConfig from "../../../src/services/EmbeddingConfig.ts"
import { eventually, messages, publish } from "../../contracts/InteractionQueueContract.ts"
import { effectTest } from "../../support/effect.ts"
import { ports, virtualHost } from "../../support/rabbit.ts"
import { withServers } from "../../support/servers.ts"
import { quiet } from "../../support/stacks.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

withServers(["rabbitmq"], "RabbitMQ: several nodes in the DSN", () => {
  effectTest(
    "a node that is gone or does not answer is skipped, and costs at most 5 s",
    () =>
      Effect.gen(function* () {
        const { dsn } = yield* virtualHost
        const [gone, frozen] = [yield* tcpProxy(dsn), yield* tcpProxy(dsn)]
        gone.cut()
        frozen.freeze()
        const rabbit = Rabbit.layer({ dsn: Redacted.make([gone.url, frozen.url, dsn].join(",")) })
        const connect = Effect.flatMap(Rabbit.Rabbit, ({ adminConnection }) => adminConnection.current)
        // Several processes, which do not all try the nodes in the same order.
        const times = yield* Effect.forEach(
          Array.from({ length: 12 }),
          () =>
            Effect.map(Effect.timed(Effect.provide(connect, Layer.fresh(rabbit))), ([time]) =>
              Duration.toMillis(time),
            ),
          { concurrency: "unbounded" },
        ).pipe(Effect.provide(quiet))
        expect(Math.max(...times)).toBeLessThan(7_000)
        expect(Math.min(...times)).toBeLessThan(2_000)
        expect(Math.max(...times)).toBeGreaterThan(4_500)
      }),
    30_000,
  )

  effectTest("a ping asks the broker, so that a connection to a frozen one is no answer", () =>
    Effect.gen(function* () {
      const { dsn } = yield* virtualHost
      const proxy = yield* tcpProxy(dsn)
      yield* Effect.gen(function* () {
        const { ping } = yield* RabbitDependency.dependency
        yield* ping
        proxy.freeze()
        expect(yield* Effect.timeoutOption(ping, "500 millis")).toEqual(Option.none())
        proxy.restore()
        yield* ping
      }).pipe(
        Effect.provide([Rabbit.layer({ dsn: Redacted.make(proxy.url) }), EmbeddingConfig.layerConfig]),
        Effect.provide(quiet),
      )
    }),
  )

  effectTest(
    "sessions continue on another node when theirs is gone, and the error names all nodes when none is left",
    () =>
      Effect.gen(function* () {
        const { dsn } = yield* virtualHost
        const [a, b] = [yield* tcpProxy(dsn), yield* tcpProxy(dsn)]
        yield* Effect.gen(function* () {
          for (const [down, up] of [
            [a, b],
            [b, a],
          ] as const) {
            up.restore()
            down.cut()
            yield* eventually(Effect.option(publish(messages(1))), ({ _tag }) => _tag === "Some")
          }
          a.cut()
          const refused = yield* eventually(Effect.flip(publish(messages(1))), ({ message }) =>
            message.includes("connect: "),
          )
          for (const { url } of [a, b]) expect(refused.message).toContain(new URL(url).host)
          expect(refused.message).not.toContain("guest")
        }).pipe(Effect.provide(ports([a.url, b.url].join(","))))
      }),
    30_000,
  )
})
