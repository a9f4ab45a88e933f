/**
 * The sink follows the feed into PostgreSQL, through outages, erasures, merges and a rebuild; on the embedded
 * stack with FAILURES=long.
 */
import { expect } from "bun:test"
import { Effect, Fiber, Layer, Redacted } from "effect"
import pg from "pg"
import * as PostgresSink from "../../src/layers/postgres/PostgresSink.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as Eraser from "../../src/services/operate/Eraser.ts"
import { sweep } from "../../src/services/operate/ErasureSweep.ts"
import * as Rebuilder from "../../src/services/operate/Rebuilder.ts"
import * as SinkFollower from "../../src/services/operate/SinkFollower.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as Catalogue from "../../src/services/recommend/Catalogue.ts"
import { bundledProgram } from "../support/bundledProgram.ts"
import { layerSuite } from "../support/effect.ts"
import { readVariables } from "../support/otherProcess.ts"
import { eventually, record, recording, search, storeProduct, workedOff } from "../support/pipeline.ts"
import { freshPostgres, withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"
import { tcpProxy } from "../support/tcpProxy.ts"

const main = await bundledProgram("src/programs/main.ts")
const words = ["wine", "tent", "boots", "rope", "lamp", "stove", "gloves", "bread"]
const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()
const events = (prefix: string, users: number, from = 0) =>
  Array.from({ length: users * 2 }, (_, i) =>
    search(`${prefix}-${i % users}`, `${words[i % 8]} ${words[(i * 3 + 1) % 8]}`, at(from + i)),
  )

const nothing = () => Effect.void
/** A new table, and a proxy in front of its server. */
const target = Effect.gen(function* () {
  const { url } = yield* Effect.acquireRelease(
    Effect.promise(() => freshPostgres()),
    ({ drop }) => Effect.promise(drop),
  )
  return { url, proxy: yield* tcpProxy(url) }
})
const sinkAt = (url: string) =>
  Layer.unwrapEffect(
    Effect.map(EmbeddingConfig.EmbeddingConfig, ({ dimensions }) =>
      PostgresSink.layer({ url: Redacted.make(url), table: "user_embeddings", dimensions }),
    ),
  )
const compare = (url: string, read: "stored" | "taste" = "stored") =>
  Effect.provide(SinkFollower.compare(read, nothing, 0), sinkAt(url))
/** Until the follower has created the table, there is nothing to compare with. */
const isEqual = (url: string, read: "stored" | "taste" = "stored") =>
  eventually(
    Effect.matchEffect(compare(url, read), {
      onFailure: () => Effect.as(Effect.sleep("50 millis"), undefined),
      onSuccess: (found) => Effect.succeed(found.examples.length === 0 && found.rows > 0 ? found : undefined),
    }),
    "30 seconds",
  )
const follow = (url: string, read: "stored" | "taste" = "stored") =>
  Effect.forkScoped(Effect.provide(SinkFollower.follow(read), sinkAt(url)))

const cli = (...args: ReadonlyArray<string>) =>
  Effect.flatMap(readVariables, (env) =>
    Effect.promise(async () => {
      const child = Bun.spawn([process.execPath, main, ...args], {
        env: { PATH: process.env.PATH ?? "", ...env, LOG_LEVEL: "error", EMBEDDING_FEED: "ids" },
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      })
      const [code, out, err] = await Promise.all([child.exited, child.stdout.text(), child.stderr.text()])
      return { code, out, err }
    }),
  )

const layers = (stack: Parameters<typeof recording>[0]) =>
  Layer.mergeAll(Eraser.layer, Rebuilder.layer, Catalogue.layer).pipe(Layer.provideMerge(recording(stack)))

const suite = (name: string, stack: Parameters<typeof recording>[0]) =>
  layerSuite(name, layers(stack), (it) => {
    it(
      "is equal to what is stored after erasures, merges, an outage, its own end, and a rebuild of all",
      () =>
        Effect.gen(function* () {
          const { proxy, url } = yield* target
          yield* record(...events("u", 30), ...events("guest", 3), ...events("away", 3))
          yield* workedOff
          // Filled from what was stored before.
          const first = yield* follow(proxy.url)
          expect((yield* isEqual(url)).rows).toBe(36)

          // Followed.
          yield* record(...events("v", 5), Interaction.merge("u-0", "guest-0", at(9_000)))
          yield* workedOff
          yield* (yield* Eraser.Eraser).erase("u-1")
          yield* sweep()
          expect((yield* isEqual(url)).rows).toBe(39)

          // The server is away, then the sink itself.
          proxy.cut()
          yield* record(...events("w", 5), Interaction.merge("u-2", "guest-1", at(9_000)))
          yield* workedOff
          yield* (yield* Eraser.Eraser).erase("u-3")
          yield* sweep()
          proxy.restore()
          expect((yield* isEqual(url)).rows).toBe(42)
          yield* Fiber.interrupt(first)
          yield* record(...events("x", 5), ...events("w", 2, 900))
          yield* workedOff
          yield* (yield* Eraser.Eraser).erase("u-4")
          yield* sweep()
          yield* follow(proxy.url)
          expect((yield* isEqual(url)).rows).toBe(46)
          yield* (yield* Rebuilder.Rebuilder).rebuild({})
          expect(yield* isEqual(url)).toMatchObject({ stored: 46, rows: 46 })
        }),
      60_000,
    )
  })

withServers(["postgres"], "the sink on the embedded stack", () => {
  if (process.env.FAILURES === "long")
    suite("with vectors in the feed", embedded({ EMBEDDING_FEED: "vectors" }))

  layerSuite("details", layers(embedded({ EMBEDDING_FEED: "ids" })), (it) => {
    it("fills the table with tastes, and follows them", () =>
      Effect.gen(function* () {
        const { url } = yield* target
        for (const [index, word] of words.entries()) yield* storeProduct(`p-${index}`, word)
        yield* record(...events("t", 4))
        yield* workedOff
        yield* follow(url, "taste")
        yield* isEqual(url, "taste")
        yield* record(...events("t", 4, 500))
        yield* workedOff
        yield* isEqual(url, "taste")
        // A taste is not the stored vector.
        expect((yield* compare(url)).vectors).toBeGreaterThan(0)
      }))

    it(
      "--check exits with 0 for an equal table, and with 1 for each kind of difference, and names users",
      () =>
        Effect.gen(function* () {
          const { url } = yield* target
          yield* record(...events("c", 4))
          yield* workedOff
          const stored = [...(yield* (yield* UserEmbeddings).load(["c-0", "c-1", "c-2", "c-3"])).keys()]
          expect(stored.length).toBe(4)
          const following = yield* follow(url)
          yield* isEqual(url)
          yield* Fiber.interrupt(following)
          const check = cli("sink", "--to", url, "--check", "--json")
          expect((yield* check).code).toBe(0)
          const change = (statement: string) =>
            Effect.promise(async () => {
              const client = new pg.Client(url)
              await client.connect()
              await client.query(statement)
              await client.end()
            })
          yield* change(
            `UPDATE user_embeddings SET embedding = embedding * array_fill(-1, ARRAY[vector_dims(embedding)])::vector
              WHERE user_id = 'c-1'`,
          )
          const { code, out } = yield* check
          expect([code, JSON.parse(out)]).toMatchObject([1, { missing: 0, vectors: 1, examples: ["c-1"] }])
          yield* change(`
            UPDATE user_embeddings SET version = version + 1 WHERE user_id = 'c-0';
            DELETE FROM user_embeddings WHERE user_id = 'c-2';
            INSERT INTO user_embeddings SELECT 'nobody', version, space, updated_at, event_count, embedding
              FROM user_embeddings WHERE user_id = 'c-3'`)
          const found = yield* compare(url)
          expect(found).toMatchObject({ missing: 1, extra: 1, versions: 1, vectors: 1 })
          expect(found.examples.toSorted()).toEqual(["c-0", "c-1", "c-2", "nobody"])
        }),
      60_000,
    )
  })
})

withServers(["postgres"], "the sink without a feed", () =>
  layerSuite("EMBEDDING_FEED=off", layers(embedded()), (it) => {
    it("stops with a message that says what to set", () =>
      Effect.gen(function* () {
        const { url } = yield* target
        const error = yield* Effect.flip(Effect.provide(SinkFollower.follow("stored"), sinkAt(url)))
        expect(error).toMatchObject({
          _tag: "FeedIsOff",
          message: expect.stringContaining("EMBEDDING_FEED=ids"),
        })
      }))
  }),
)

withServers(["rabbitmq", "mysql", "mongodb", "postgres"], "the sink on real servers", () =>
  suite("with ids in the feed", external({ EMBEDDING_FEED: "ids" })),
)
