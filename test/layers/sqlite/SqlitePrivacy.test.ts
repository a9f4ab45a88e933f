/** What an erasure leaves on the disk of the embedded stack, and who may read the files. */
import { expect } from "bun:test"
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Effect, Exit, Layer, Scope } from "effect"
import * as Stack from "../../../src/layers/Stack.ts"
import { fileName } from "../../../src/layers/sqlite/Sqlite.ts"
import * as Provision from "../../../src/programs/tasks/ProvisionServers.ts"
import { Eraser, layer as eraser } from "../../../src/services/operate/Eraser.ts"
import { effectTest } from "../../support/effect.ts"
import { drained, pipeline, record, search } from "../../support/pipeline.ts"
import { quiet, variables } from "../../support/stacks.ts"

const phrase = "zirconium slippers for a secret admirer"
const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "user-embeddings-"))),
  (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true })),
)
const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8)
const occurrencesIn = (folder: string) =>
  readdirSync(folder)
    .map((name) => readFileSync(join(folder, name), "latin1").split(phrase).length - 1)
    .reduce((sum, count) => sum + count, 0)

const stackIn = (folder: string) =>
  Stack.layer.pipe(
    Layer.tap((ports) => Effect.provide(Provision.setup, ports)),
    Layer.provide(variables({ DATA_DIR: folder })),
    Layer.provideMerge(quiet),
  )

effectTest("after an erasure and a stop, no file holds a phrase of the user", () =>
  Effect.gen(function* () {
    const folder = yield* temporary
    const scope = yield* Scope.make()
    const all = eraser.pipe(Layer.provideMerge(pipeline(stackIn(folder))))
    const context = yield* Layer.buildWithScope(all, scope)
    yield* Effect.gen(function* () {
      for (let i = 0; i < 40; i++)
        yield* record(search("u-1", `${phrase} ${i}`, new Date(1_700_000_000_000 + i).toISOString()))
      yield* drained
      expect(occurrencesIn(folder)).toBeGreaterThan(40)
      yield* Effect.flatMap(Eraser, ({ erase }) => erase("u-1"))
      yield* drained
    }).pipe(Effect.provide(context))
    yield* Scope.close(scope, Exit.void)
    expect(readdirSync(folder)).toContain(fileName)
    expect(occurrencesIn(folder)).toBe(0)
  }),
)

effectTest("only the owner may read the folder and its files, also when they were readable before", () =>
  Effect.gen(function* () {
    const folder = join(yield* temporary, "data")
    const open = Effect.scoped(
      Effect.flatMap(Layer.build(stackIn(folder)), () =>
        Effect.sync(() => readdirSync(folder).map((name) => [name, modeOf(join(folder, name))])),
      ),
    )
    const files = yield* open
    expect(files.length).toBeGreaterThan(1)
    for (const [, mode] of files) expect(mode).toBe("600")
    expect(modeOf(folder)).toBe("700")
    yield* Effect.sync(() => Bun.spawnSync(["chmod", "644", join(folder, fileName)]))
    for (const [, mode] of yield* open) expect(mode).toBe("600")
  }),
)
