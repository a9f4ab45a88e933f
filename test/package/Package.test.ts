/** The published packages: tests pack them, install them in empty folders, and run their examples and the program. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const root = join(import.meta.dir, "../..")
const bun = process.execPath
const folder = mkdtempSync(join(tmpdir(), "package-"))
const shop = join(folder, "shop")
const data = join(folder, "data")

const run = async (cwd: string, command: ReadonlyArray<string>, env: Record<string, string> = {}) => {
  const child = Bun.spawn([...command], {
    cwd,
    env: {
      PATH: `${join(bun, "..")}:${process.env.PATH}`,
      HOME: process.env.HOME ?? "",
      LOG_LEVEL: "error",
      ...env,
    },
    stdout: "pipe",
    stderr: "pipe",
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stdout, stderr }
}
const runs = async (cwd: string, command: ReadonlyArray<string>, env: Record<string, string> = {}) => {
  const { code, stderr, stdout } = await run(cwd, command, env)
  if (code !== 0) throw new Error(`${command.join(" ")}: exit ${code}\n${stdout}\n${stderr}`)
  return stdout
}

await runs(root, [bun, "pm", "pack", "--destination", folder])
const tarball = join(folder, readdirSync(folder).find((name) => name.endsWith(".tgz")) ?? "")
mkdirSync(shop)
writeFileSync(join(shop, "package.json"), JSON.stringify({ name: "shop", private: true, type: "module" }))
const installed = await run(shop, [bun, "add", "--prefer-offline", tarball])

afterAll(() => rmSync(folder, { recursive: true, force: true }))

test("the package holds only the program, sources, types, documents, samples and examples, and stays small", async () => {
  const listed = await runs(folder, ["tar", "tzf", tarball])
  const files = listed
    .trim()
    .split("\n")
    .map((name) => name.replace(/^package\//, ""))
  const places = new Set(files.map((name) => name.split("/")[0]))
  expect([...places].toSorted()).toEqual(
    [
      "CHANGELOG.md",
      "LICENSE",
      "README.md",
      "bin",
      "docs",
      "examples",
      "package.json",
      "samples",
      "src",
      "types",
    ].toSorted(),
  )
  for (const made of ["src/index.d.ts", "client/index.js", "client/index.d.ts"])
    expect(files).toContain(`types/${made}`)
  expect(files.filter((name) => /\.(test|env)|tsbuildinfo|\.sqlite/.test(name))).toEqual([])
  expect(statSync(tarball).size).toBeLessThan(700_000)
})

const suite = () => {
  let server: Bun.Subprocess<"ignore", "ignore", "pipe">
  let url = ""

  beforeAll(async () => {
    cpSync(join(shop, "node_modules/user-embeddings/examples"), shop, { recursive: true })
    server = Bun.spawn([join(shop, "node_modules/.bin/user-embeddings"), "up"], {
      cwd: shop,
      env: {
        PATH: `${join(bun, "..")}:${process.env.PATH}`,
        DATA_DIR: data,
        API_PORT: "0",
        WORKER_PORT: "0",
        LOG_FORMAT: "json",
      },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    })
    const decoder = new TextDecoder()
    let output = ""
    for await (const chunk of server.stderr) {
      output += decoder.decode(chunk)
      url = /Try: curl -X POST (http:\/\/[^/]+)/.exec(output)?.[1] ?? ""
      if (url !== "") break
    }
    if (url === "") throw new Error(`user-embeddings up printed:\n${output}`)
  }, 60_000)
  afterAll(async () => {
    server?.kill("SIGTERM")
    await server?.exited
  })

  test("the installed program serves the API", async () => {
    const ready = () => fetch(`${url}/readyz`)
    let answer = await ready()
    // It listens before it has looked at the database for the first time.
    for (
      const began = Date.now();
      answer.status !== 200 && Date.now() - began < 10_000;
      answer = await ready()
    )
      await Bun.sleep(100)
    expect([answer.status, await answer.json()]).toMatchObject([200, { status: "ok" }])
  }, 20_000)

  test("the example with promises", async () => {
    const output = await runs(shop, [bun, "promises.ts"])
    expect(output).toContain("recorded again: duplicate = true")
    expect(output).toContain("2 interactions in 384 dimensions (local:minilm-words:384)")
    expect(output).toMatch(/^taste: Studio headphones \S+ because of search \d+ %/m)
  }, 30_000)

  test("the example over HTTP", async () => {
    const output = await runs(shop, [bun, "http.ts", url])
    expect(output).toMatch(/^recorded [0-9a-f]{64}\nevent_count 1, last search, in local:minilm-words:1536\n/)
    expect(output).toMatch(/3 recommendations by taste: \S/)
  }, 30_000)

  test("the example of the client, on Node", async () => {
    const output = await runs(shop, ["node", "client.mjs", url])
    expect(output).toMatch(
      /^recorded 1 of 1\ntaste of 1536 numbers → \S.*\n422 query: must be 1 to 255 characters/,
    )
  }, 30_000)

  test("the package of the client alone, on Node and Bun", async () => {
    const alone = join(folder, "alone")
    const packed = join(alone, "node_modules/user-embeddings-client")
    mkdirSync(alone)
    const at = join(shop, "node_modules/user-embeddings/types/client")
    const [{ filename }] = JSON.parse(await runs(alone, ["npm", "pack", "--json", at]))
    await runs(alone, ["npm", "install", "--prefix", ".", "--offline", "--no-audit", filename])
    expect(readdirSync(join(alone, "node_modules")).filter((name) => !name.startsWith("."))).toEqual([
      "user-embeddings-client",
    ])
    const files = readdirSync(packed, { recursive: true, encoding: "utf8" }).map((name) => join(packed, name))
    expect(files.reduce((bytes, file) => bytes + statSync(file).size, 0)).toBeLessThan(100_000)

    const [, example = ""] = /^```js\n(.*?)^```/ms.exec(readFileSync(join(packed, "README.md"), "utf8")) ?? []
    writeFileSync(join(alone, "example.mjs"), example.replace("https://events.shop.example", url))
    expect(await runs(alone, ["node", "example.mjs"])).toMatch(/^recorded\n\[/)
    expect(await runs(alone, [bun, "example.mjs"])).toMatch(/^recorded before\n\[/)

    const program = `import { createClient } from "user-embeddings-client"
const shop = createClient({ url: "" })
const { items } = await shop.recommendations("u")
export const names: ReadonlyArray<string | null> = items.map(({ product_name }) => product_name)
export const wrong: string = (await shop.record([])).accepted`
    writeFileSync(join(alone, "wrong.mts"), program)
    const options = ["--noEmit", "--module", "nodenext", "--target", "es2022", "--checkers", "1"]
    const { stdout } = await run(alone, [join(root, "node_modules/.bin/tsc"), ...options, "wrong.mts"])
    expect(stdout.trim().split("\n")).toEqual([
      expect.stringMatching(/^wrong\.mts\(5,14\): error TS2322: .*'number'.*'string'/),
    ])
  }, 30_000)

  test("on Node the library says what to use instead", async () => {
    const { code, stderr } = await run(shop, ["node", "-e", 'import("user-embeddings")'])
    expect([code, stderr]).toEqual([1, expect.stringContaining("user-embeddings/client")])
  })

  test("the example with Effect", async () => {
    expect(await runs(shop, [bun, "effect.ts"])).toContain("1 interaction in space letters:64")
  }, 30_000)

  test.each(["bundler", "nodenext"])(
    "a program that uses the package compiles with moduleResolution %s",
    async (resolution) => {
      const config = join(shop, `tsconfig.${resolution}.json`)
      writeFileSync(
        config,
        JSON.stringify({
          compilerOptions: {
            strict: true,
            noEmit: true,
            checkJs: true,
            skipLibCheck: true,
            target: "esnext",
            lib: ["esnext"],
            module: resolution === "bundler" ? "preserve" : "nodenext",
            moduleResolution: resolution,
            typeRoots: [join(root, "node_modules/@types")],
            types: ["bun"],
          },
          include: ["*.ts", "*.mjs"],
        }),
      )
      writeFileSync(
        join(shop, "wrong.ts"),
        'import { open } from "user-embeddings"\nexport const shop = open({ stack: "embeded" })\n',
      )
      const tsc = join(root, "node_modules/.bin/tsc")
      const { stdout } = await run(shop, [tsc, "--project", config, "--checkers", "1"])
      expect(stdout.trim().split("\n")).toEqual([
        expect.stringMatching(/^wrong\.ts\(2,\d+\): error TS\d+: .*embeded/),
      ])
    },
    60_000,
  )
}

if (installed.code === 0) describe("installed in an empty folder", suite)
else
  test.skip(`installed in an empty folder: SKIPPED, the package cannot be installed: ${installed.stderr.trim().split("\n").at(-1)}`, () => {})
