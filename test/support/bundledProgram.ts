/** Programs that tests start, as bundles. */
import { afterAll } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { bundle, bundlesVariable } from "../../scripts/test/bundle.ts"

/**
 * Bundles a program and answers the path of the bundle. Call this at the top level of the file: outside the test command,
 * the bundle is deleted after the tests of the file.
 */
export const bundledProgram = async (entry: string): Promise<string> => {
  const shared = process.env[bundlesVariable]
  if (shared !== undefined) return bundle(entry, shared)
  const folder = mkdtempSync(join(tmpdir(), "bundles-"))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  return bundle(entry, folder)
}
