/** docs/contracts/openapi.d.ts: the types of the HTTP API, made by openapi-typescript from its OpenAPI document. */
import { hash } from "node:crypto"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"

const folder = resolve(import.meta.dir, "../../docs/contracts")
const openapi = join(folder, "openapi.json")
export const types = join(folder, "openapi.d.ts")

/** The first line, which names the document that the types were made from. */
export const firstLine = () =>
  `// Made by bun run contracts from openapi.json with sha256 ${hash("sha256", readFileSync(openapi))}\n`

/** The generator needs TypeScript 5, so that it cannot stand among the dependencies. */
export const writeTypes = async () => {
  const made = mkdtempSync(join(tmpdir(), "types-"))
  try {
    const out = join(made, "openapi.d.ts")
    const packages = ["--package", "openapi-typescript@7.10.1", "--package", "typescript@5.9.3"]
    const child = Bun.spawn(["npx", "-y", ...packages, "openapi-typescript", openapi, "-o", out], {
      stdout: "ignore",
    })
    if ((await child.exited) !== 0) throw new Error("openapi-typescript failed")
    await Bun.write(types, firstLine() + readFileSync(out, "utf8"))
  } finally {
    rmSync(made, { recursive: true })
  }
}
