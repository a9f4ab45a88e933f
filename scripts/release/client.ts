/**
 * The package `user-embeddings-client`: the HTTP client alone, with its types. `bun scripts/release/client.ts FOLDER`
 * writes it into a folder. `prepack` does so too, because `user-embeddings/client` is the same module.
 */
import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import manifest from "../../package.json" with { type: "json" }

const root = resolve(import.meta.dir, "../..")
const source = join(root, "src/client")
const openapi = "docs/contracts/openapi.d.ts"

const packageJson = (version: string) => ({
  name: `${manifest.name}-client`,
  version,
  description: "An HTTP client of user-embeddings on fetch, without dependencies",
  license: manifest.license,
  type: "module",
  sideEffects: false,
  exports: {
    ".": { types: "./index.d.ts", default: "./index.js" },
    "./package.json": "./package.json",
  },
  engines: { node: ">=20" },
})

const read = (file: string) => Bun.file(file).text()

/** The declarations of the client, as tsc makes them. They import those of the API from beside them. */
const declarations = async () => {
  const made = await mkdtemp(join(tmpdir(), "declarations-"))
  try {
    const options =
      "--ignoreConfig --declaration --emitDeclarationOnly --allowImportingTsExtensions --skipLibCheck"
    const { exitCode, stdout } = Bun.spawnSync(
      [
        join(root, "node_modules/.bin/tsc"),
        ...options.split(" "),
        ...["--module", "preserve", "--target", "esnext", "--checkers", "1"],
        ...["--rootDir", root, "--outDir", made, join(source, "index.ts")],
      ],
      { cwd: root },
    )
    if (exitCode !== 0) throw new Error(`tsc failed\n${stdout}`)
    return (await read(join(made, "src/client/index.d.ts"))).replace(`../../${openapi}`, "./openapi.d.ts")
  } finally {
    await rm(made, { recursive: true })
  }
}

/** The client uses operations and their successful answers. Paths and refusals are two thirds of the text. */
export const withoutRefusals = (types: string) =>
  types
    .replace(/^export interface paths \{\n[\s\S]*?^\}\n/m, "")
    .replace(/^ {12}(?:\/\*\*.*\*\/\n {12})?[45]\d\d: \{\n[\s\S]*?^ {12}\};\n/gm, "")

/** Writes the package into a folder, which is emptied first. */
export const writeClient = async (folder: string, version: string) => {
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  await Bun.build({ entrypoints: [join(source, "index.ts")], target: "browser", outdir: folder })
  await Bun.write(join(folder, "index.d.ts"), await declarations())
  await Bun.write(join(folder, "openapi.d.ts"), withoutRefusals(await read(join(root, openapi))))
  await Bun.write(join(folder, "package.json"), `${JSON.stringify(packageJson(version), null, 2)}\n`)
  await copyFile(join(source, "README.md"), join(folder, "README.md"))
  await copyFile(join(root, "LICENSE"), join(folder, "LICENSE"))
}

if (import.meta.main) await writeClient(resolve(Bun.argv[2]!), manifest.version)
