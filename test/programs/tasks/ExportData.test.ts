/** Exports on both stacks, read back by independent readers: every vector exactly, and only the selected data. */
import { afterAll, expect } from "bun:test"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BunContext } from "@effect/platform-bun"
import { Deferred, Effect, Either, Fiber, Layer, Option } from "effect"
import { asyncBufferFromFile, parquetReadObjects } from "hyparquet"
import {
  embeddingFormats,
  exportEmbeddings,
  exportInteractions,
  exportUser,
} from "../../../src/programs/tasks/ExportData.ts"
import { importInteractions } from "../../../src/programs/tasks/ImportInteractions.ts"
import { fold } from "../../../src/services/model/Fold.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import type { UserEmbedding } from "../../../src/services/model/UserEmbedding.ts"
import * as Vector from "../../../src/services/model/Vector.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import { PhraseEmbedder } from "../../../src/services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../../src/services/ports/UserEmbeddings.ts"
import * as Catalogue from "../../../src/services/recommend/Catalogue.ts"
import { readVectors } from "../../../src/services/recommend/EmbeddingReads.ts"
import * as EventVectors from "../../../src/services/update/EventVectors.ts"
import { layerSuite } from "../../support/effect.ts"
import { product, search } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const folder = mkdtempSync(join(tmpdir(), "export-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
let files = 0
const fresh = (ending: string) => join(folder, `${files++}.${ending}`)

const dimensions = 24
const noon = Date.parse("2026-03-01T12:00:00.000Z")
const minutes = (n: number) => noon + n * 60_000

/** Embedding of a user, written at minute `n`, in an arbitrary direction. */
const embeddingOf = (user: string, n: number, space: string): UserEmbedding => {
  const vector = Vector.normalise(
    Float32Array.from({ length: dimensions }, (_, i) => Math.sin(n * 31 + i * i)),
  )
  const interaction = product(user, "product_view", `p-${n}`, new Date(minutes(n)).toISOString())
  const weights = { search: 0.7, product_view: 0.3, product_click: 0.5, product_purchase: 1 }
  return Either.getOrThrow(
    fold(
      undefined,
      [{ interaction, vector }],
      { lambda: 0.023, weights, history: "cumulative", space },
      minutes(n),
    ),
  )
}

const stored = 620
const unchanged = { archived: 0, erased_at: 0, erased_to: null, generation: 0 }
const fill = Effect.gen(function* () {
  const users = yield* UserEmbeddings
  const { space } = yield* PhraseEmbedder
  const embeddings = Array.from({ length: stored }, (_, n) => embeddingOf(`u-${1_000 + n}`, n, space))
  yield* users.save(
    [...embeddings, embeddingOf("u-elsewhere", 5_000, "openai:other:24")].map((embedding) => ({
      record: {
        user_id: embedding.user_id,
        embedding,
        version: 1,
        applied: new Uint8Array(0),
        ...unchanged,
      },
      expected: undefined,
    })),
  )
  yield* users.save(
    [
      { user_id: "u-guest", links: { alias_of: "u-1000" }, applied: new Uint8Array(0) },
      { user_id: "u-refunded", applied: new Uint8Array(16) },
    ].map((record) => ({
      record: { ...record, embedding: undefined, version: 1, ...unchanged },
      expected: undefined,
    })),
  )
  yield* users.erase("u-gone", { erased_at: minutes(6_000), erased_to: 0 })
  return embeddings
})

const options = (format: "jsonl" | "npy" | "parquet", out: string, since?: number) => ({
  format,
  out: Option.some(out),
  since,
  read: "stored" as const,
  progress: () => Effect.void,
})
const bits = (vector: ArrayLike<number>) => Buffer.from(Float32Array.from(vector).buffer).toString("hex")
const readLines = (file: string) =>
  readFileSync(file, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line))

const reading = Layer.merge(Catalogue.layer, EventVectors.layer)

const suite = (name: string, stack: ReturnType<typeof embedded>) =>
  layerSuite(name, Layer.merge(Layer.provideMerge(reading, stack), BunContext.layer), (it) => {
    let all: ReadonlyArray<UserEmbedding> = []

    it("JSON Lines have each user's record and vector; users of another space are counted, but left out", () =>
      Effect.gen(function* () {
        all = yield* fill
        const file = fresh("jsonl")
        const done = yield* exportEmbeddings(options("jsonl", file))
        expect(done).toMatchObject({ exported: stored, gone: 0, other_space: 1, files: [file] })
        const lines = readLines(file)
        expect(lines.map(({ user_id }) => user_id)).toEqual(all.map(({ user_id }) => user_id))
        for (const [index, line] of lines.entries())
          expect(bits(line.embedding)).toBe(bits(all[index]!.embedding))
        expect(lines[3]).toMatchObject({
          event_count: 1,
          last_updated: new Date(minutes(3)).toISOString(),
          version: 1,
          metadata: { view_count: 1 },
          recent: [{ product_id: "p-3" }],
        })
      }))

    it("with since, only embeddings written since, and users who have none any more", () =>
      Effect.gen(function* () {
        const file = fresh("jsonl")
        const done = yield* exportEmbeddings(options("jsonl", file, minutes(stored - 2)))
        expect(done).toMatchObject({ exported: 2, gone: 3, other_space: 1 })
        const withoutVector = readLines(file).filter(({ embedding }) => embedding === undefined)
        expect(withoutVector).toEqual([
          { user_id: "u-gone", erased_at: new Date(minutes(6_000)).toISOString() },
          { user_id: "u-guest", merged_into: "u-1000" },
          { user_id: "u-refunded", event_count: 0 },
        ] as never)
        expect(readLines(file).flatMap(({ embedding, user_id }) => (embedding ? [user_id] : []))).toEqual([
          `u-${1_000 + stored - 2}`,
          `u-${1_000 + stored - 1}`,
        ] as never)
      }))

    it("NumPy: a matrix of float32, and the ids of its rows in a second file", () =>
      Effect.gen(function* () {
        const file = fresh("npy")
        const done = yield* exportEmbeddings(options("npy", file))
        const [, ids] = done.files
        const bytes = readFileSync(file)
        expect(bytes.subarray(0, 128).toString("latin1")).toStartWith(
          `\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (${stored}, ${dimensions}), }`,
        )
        expect(bytes[127]).toBe(10)
        expect(bytes.length).toBe(128 + stored * dimensions * 4)
        expect(readFileSync(ids!, "utf8")).toBe(all.map(({ user_id }) => `${user_id}\n`).join(""))
        const matrix = Vector.fromBytes(bytes.subarray(128))
        for (const [row, { embedding }] of all.entries())
          expect(bits(matrix.subarray(row * dimensions, (row + 1) * dimensions))).toBe(bits(embedding))
      }))

    it("Parquet: the same rows, with the vector as a list of floats", () =>
      Effect.gen(function* () {
        const file = fresh("parquet")
        yield* exportEmbeddings(options("parquet", file))
        const rows = yield* Effect.promise(async () =>
          parquetReadObjects({ file: await asyncBufferFromFile(file) }),
        )
        expect(rows.length).toBe(stored)
        for (const [index, row] of rows.entries()) {
          expect(row.user_id).toBe(all[index]!.user_id)
          expect(bits(row.embedding)).toBe(bits(all[index]!.embedding))
        }
        expect(rows[5]).toMatchObject({
          event_count: 1,
          last_event_type: "product_view",
          mass: all[5]!.mass,
          last_updated: new Date(minutes(5)),
          history: "cumulative",
        })
      }))

    it("a failed export leaves no file under the final name", () =>
      Effect.gen(function* () {
        const file = fresh("npy")
        const failed = yield* Effect.exit(
          exportEmbeddings({ ...options("npy", file), progress: () => Effect.die("stopped") }),
        )
        expect([failed._tag, existsSync(file)]).toEqual(["Failure", false])
      }))

    for (const format of embeddingFormats)
      it(`${format}: an interrupted export leaves no file, and a path that can't be written is named with the cause`, () =>
        Effect.gen(function* () {
          const empty = mkdtempSync(join(folder, "empty-"))
          const written = yield* Deferred.make<void>()
          const progress = () => Effect.zipRight(Deferred.succeed(written, undefined), Effect.never)
          const path = join(empty, `users.${format}`)
          const running = yield* Effect.fork(exportEmbeddings({ ...options(format, path), progress }))
          yield* Deferred.await(written)
          expect(readdirSync(empty)).toContain(`users.${format}.partial`)
          yield* Fiber.interrupt(running)
          expect(readdirSync(empty)).toEqual([])
          const missing = join(empty, "nope", "x")
          for (const [to, cause] of [
            [missing, `the folder ${join(empty, "nope")} does not exist`],
            [empty, "it is a folder"],
          ] as const) {
            const failed = yield* Effect.flip(exportEmbeddings(options(format, to)))
            expect(failed.message).toBe(`cannot write ${to}: ${cause}`)
          }
        }))

    it("all that is stored about a user is one JSON document, whose events can be imported", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const user = "u-1007"
        const guest = "guest-1007"
        const interactions = [
          search(guest, 'a "quoted" phrase', new Date(minutes(1)).toISOString()),
          product(user, "product_click", "p-1", new Date(minutes(2)).toISOString()),
          Interaction.merge(user, guest, new Date(minutes(3)).toISOString()),
        ]
        yield* log.append(
          [
            ...interactions,
            product("u-1008", "product_click", "p-1", new Date(minutes(2)).toISOString()),
          ].map((interaction) => ({
            interaction,
            idempotencyKey: null,
            occurredAtGiven: true,
            trace: null,
            recordedAt: minutes(10),
          })),
        )
        const file = fresh("json")
        const options = { out: Option.some(file), progress: () => Effect.void }
        yield* (yield* InteractionLog).noteRefunds([{ user_id: user, order_id: "o-1", products: ["p-1"] }])
        const done = yield* exportUser({ ...options, user: guest })
        expect(done).toEqual({
          user_id: user,
          interactions: 3,
          embedding: true,
          dead_letters: 0,
          files: [file],
        })
        const document = JSON.parse(readFileSync(file, "utf8"))
        expect(document.interactions.map((one: { message_id: string }) => one.message_id)).toEqual(
          interactions.map(({ message_id }) => message_id),
        )
        expect(document.aliases).toEqual([guest])
        expect(document.refunds).toEqual([{ order_id: "o-1", products: ["p-1"] }])
        expect(bits(document.embedding.embedding)).toBe(bits(all[7]!.embedding))
        const unknown = fresh("json")
        yield* exportUser({ user: "u-nobody", out: Option.some(unknown), progress: () => Effect.void })
        expect(JSON.parse(readFileSync(unknown, "utf8"))).toMatchObject({
          user_id: "u-nobody",
          embedding: null,
          dead_letters: [],
          pruned: [],
          pruned_products: [],
          refunds: [],
          interactions: [],
        })
      }))

    it("tastes are those that single reads give, in every format", () =>
      Effect.gen(function* () {
        const { space } = yield* PhraseEmbedder
        const axis = Float32Array.from({ length: dimensions }, (_, i) => (i === 0 ? 1 : 0))
        yield* (yield* ProductEmbeddings).upsert([{ product_id: "p-3", embedding: axis, space, text: null }])
        const catalogue = yield* Catalogue.Catalogue
        yield* catalogue.invalidate
        const ids = all.map(({ user_id }) => user_id)
        const expected = yield* readVectors(ids, "taste")
        const [lines, matrix] = [fresh("jsonl"), fresh("npy")]
        const done = yield* exportEmbeddings({ ...options("jsonl", lines), read: "taste" })
        expect(done).toMatchObject({ exported: stored, without_taste: 0, other_space: 1 })
        yield* exportEmbeddings({ ...options("npy", matrix), read: "taste" })
        const rows = Vector.fromBytes(readFileSync(matrix).subarray(128))
        for (const [index, line] of readLines(lines).entries()) {
          const taste = expected[index]!.embedding
          expect([line.user_id, line.read]).toEqual([ids[index], "taste"])
          expect(Vector.dot(Float32Array.from(line.embedding), taste)).toBeCloseTo(1, 5)
          expect(Vector.dot(rows.slice(index * dimensions, (index + 1) * dimensions), taste)).toBeCloseTo(
            1,
            5,
          )
        }
        expect(Vector.dot(expected[5]!.embedding, all[5]!.embedding)).toBeLessThan(0.999)
      }))

    it("exported interactions, imported again, are all duplicates", () =>
      Effect.gen(function* () {
        const log = yield* InteractionLog
        const interactions = Array.from({ length: 700 }, (_, n) =>
          n % 2 === 0
            ? search(`r-${n % 9}`, `a "quoted", phrase ${n}`, new Date(minutes(n)).toISOString())
            : product(`r-${n % 9}`, "product_click", `p-${n}`, new Date(minutes(n)).toISOString()),
        )
        yield* log.append(
          interactions.map((interaction) => ({
            interaction,
            idempotencyKey: null,
            occurredAtGiven: true,
            trace: null,
            recordedAt: minutes(10_000),
          })),
        )
        for (const format of ["jsonl", "csv"] as const) {
          const file = fresh(format)
          const filter = { recordedSince: new Date(minutes(10_000)).toISOString() }
          const out = Option.some(file)
          const done = yield* exportInteractions({ format, out, filter, progress: () => Effect.void })
          expect(done).toEqual({ exported: 700, files: [file] })
          const reading = { format, delimiter: ",", map: {}, types: {}, set: {}, ignore: [] }
          const back = yield* importInteractions(file, {
            reading,
            state: Option.some(`${file}.state.json`),
            restart: false,
            strict: true,
            progress: () => Effect.void,
          })
          expect(back).toMatchObject({ records: 700, duplicates: 700 })
        }
      }))
  })

const small = { EMBEDDING_DIMENSIONS: String(dimensions), OPENAI_API_KEY: "never-asked" }
suite("exports of the embedded stack", embedded(small))
withServers(["rabbitmq", "mysql", "mongodb"], "exports of real servers", () =>
  suite("MongoDB and MySQL", external(small)),
)
