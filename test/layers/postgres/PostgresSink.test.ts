/** The sink in PostgreSQL: the contract suite, and what is special about pgvector. */
import { afterAll, describe, expect, test } from "bun:test"
import { Effect, Either, Layer, Redacted } from "effect"
import pg from "pg"
import * as PostgresSink from "../../../src/layers/postgres/PostgresSink.ts"
import { EmbeddingSink, type SinkConnection } from "../../../src/services/ports/EmbeddingSink.ts"
import { suite } from "../../contracts/EmbeddingSinkContract.ts"
import { freshPostgres, withServers } from "../../support/servers.ts"
import { tcpProxy } from "../../support/tcpProxy.ts"

withServers(["postgres"], "the sink in PostgreSQL", () => {
  const fresh = freshPostgres()
  afterAll(async () => void (await (await fresh).drop()))

  const sink = (table: string, dimensions: number, url?: string) =>
    Layer.unwrapEffect(
      Effect.promise(async () =>
        PostgresSink.layer({ url: Redacted.make(url ?? (await fresh).url), table, dimensions }),
      ),
    )
  const using = <A, E>(
    layer: Layer.Layer<EmbeddingSink>,
    use: (connection: SinkConnection) => Effect.Effect<A, E>,
  ) =>
    Effect.runPromise(
      Effect.flatMap(EmbeddingSink, ({ connect }) => Effect.flatMap(connect, use)).pipe(
        Effect.scoped,
        Effect.provide(layer),
        Effect.either,
      ),
    )
  const rows = async (statement: string) => {
    const client = new pg.Client((await fresh).url)
    await client.connect()
    const found = await client.query(statement)
    await client.end()
    return found.rows
  }

  suite("PostgreSQL: sink of embeddings", sink("contract", 4))
  suite("PostgreSQL: sink in a table of mixed name", sink("public.with_schema", 4))

  describe("vectors", () => {
    const indexOf = async (table: string) =>
      (await rows(`SELECT indexdef FROM pg_indexes WHERE indexname = '${table}_embedding'`))[0]?.indexdef
    const row = (dimensions: number) => ({
      user_id: "u",
      version: 1,
      space: "test",
      updated_at: "2026-01-01T00:00:00Z",
      event_count: 1,
      embedding: new Float32Array(dimensions).fill(0.01),
    })
    test.each([
      [2_000, "hnsw (embedding vector_cosine_ops)"],
      [4_000, "hnsw (((embedding)::halfvec(4000)) halfvec_cosine_ops)"],
    ])("of %d dimensions have an HNSW index", async (dimensions, definition) => {
      const table = `d${dimensions}`
      const answer = await using(sink(table, dimensions), ({ apply, index, prepare }) =>
        Effect.zipRight(Effect.zipRight(prepare, apply({ rows: [row(dimensions)], removals: [] })), index),
      )
      expect(answer).toEqual(Either.right(undefined))
      expect(await indexOf(table)).toContain(definition)
    })
    test("above 4,000 dimensions have no index, and the sink says so", async () => {
      const answer = await using(sink("d4001", 4_001), ({ index, prepare }) =>
        Effect.zipRight(prepare, index),
      )
      expect(Either.getOrThrow(answer)).toContain("at most 4000 dimensions, and these are 4001")
      expect(await indexOf("d4001")).toBeUndefined()
    })
    test("that are not newer than the row are not sent", async () => {
      const of = (dimensions: number) => ({ rows: [row(dimensions)], removals: [] })
      const answer = await using(sink("stale", 4), ({ apply, prepare }) =>
        Effect.zipRight(Effect.zipRight(prepare, apply(of(4))), apply(of(5))),
      )
      // PostgreSQL would refuse a vector of 5 dimensions.
      expect(answer).toEqual(Either.right(undefined))
    })
    test("of another dimension than those of the table are refused before anything is written", async () => {
      await using(sink("other", 4), ({ prepare }) => prepare)
      const answer = await using(sink("other", 5), ({ prepare }) => prepare)
      expect(Either.flip(answer)).toMatchObject({ right: { reason: "rejected" } })
      expect(String(Either.getOrThrow(Either.flip(answer)).message)).toContain(
        "the table other has vectors of 4 dimensions, EMBEDDING_DIMENSIONS is 5: choose another --table",
      )
    })
  })

  test("errors name the server and say what kind they are, without the password", async () => {
    const { url } = await fresh
    const changed = (change: (url: URL) => void) => {
      const other = new URL(url)
      change(other)
      return other.href
    }
    const failure = async (address: string) => {
      const answer = await using(sink("t", 4, address), ({ prepare }) => prepare)
      const { message, reason } = Either.getOrThrow(Either.flip(answer))
      expect(message).not.toContain("secret")
      return { message, reason }
    }
    const nowhere = changed((other) => {
      other.port = "1"
      other.password = "secret"
    })
    expect(await failure(nowhere)).toMatchObject({ reason: "unavailable" })
    expect((await failure(nowhere)).message).toContain("PostgreSQL at 127.0.0.1:1/")
    const absent = changed((other) => {
      other.pathname = "/absent"
    })
    expect(await failure(absent)).toMatchObject({ reason: "not_set_up" })
  })

  test("a lost connection fails calls as unavailable, and does not end the process", async () => {
    const { url } = await fresh
    const error = await Effect.gen(function* () {
      const proxy = yield* tcpProxy(url)
      const { connect } = yield* Effect.provide(EmbeddingSink, sink("lost", 4, proxy.url))
      const { apply, prepare } = yield* connect
      yield* prepare
      proxy.cut()
      return yield* Effect.flip(apply({ rows: [], removals: [{ user_id: "u", version: 1 }] }))
    }).pipe(Effect.scoped, Effect.runPromise)
    expect(error).toMatchObject({ reason: "unavailable", server: expect.stringContaining("PostgreSQL at") })
  })
})
