/**
 * Generators make the clients of docs/clients.md from the OpenAPI document, whose examples run against the API, and a strict
 * linter finds nothing. The whole test command leaves this out, because the generators must be installed.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { HttpServer } from "@effect/platform"
import { Context, Effect, Exit, Layer, Scope } from "effect"
import * as Api from "../../src/programs/Api.ts"
import * as Worker from "../../src/programs/Worker.ts"
import { embedded } from "../support/stacks.ts"

const root = resolve(import.meta.dir, "../..")
const openapi = join(root, "docs/contracts/openapi.json")
const guide = readFileSync(join(root, "docs/clients.md"), "utf8")
const example = (language: string) =>
  new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\``, "ms").exec(guide)?.[1] ?? expect.unreachable()
const version = (name: string) => new RegExp(`${name}==([\\d.]+)`).exec(guide)?.[1]

if (process.env.FAILURES !== "brief")
  describe("clients made from the OpenAPI document", () => {
    const folder = mkdtempSync(join(tmpdir(), "clients-"))
    const packages = join(folder, "packages")
    const scope = Effect.runSync(Scope.make())
    let url = ""

    const run = async (...command: ReadonlyArray<string>) => {
      const child = Bun.spawn([...command], {
        cwd: folder,
        env: { ...process.env, PYTHONPATH: `${packages}:${join(folder, "python")}` },
        stdout: "pipe",
        stderr: "pipe",
      })
      const [out, err] = await Promise.all([
        new Response(child.stdout).text(),
        new Response(child.stderr).text(),
      ])
      const code = await child.exited
      if (code !== 0) throw new Error(`${command.join(" ")} ended with ${code}\n${out}\n${err}`)
      return out
    }
    const install = (name: string) => {
      const pip = ["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--target", packages]
      return run("python3", ...pip, `${name}==${version(name)}`)
    }
    const put = (product: string, name: string) =>
      fetch(`${url}/api/product/${product}`, {
        method: "PUT",
        headers: { authorization: "Bearer t", "content-type": "application/json" },
        body: JSON.stringify({ product_name: name, text: name }),
      })

    beforeAll(async () => {
      const system = Layer.merge(Api.layer, Worker.layer).pipe(
        Layer.provideMerge(
          embedded({ API_PORT: "0", WORKER_PORT: "0", API_HOST: "127.0.0.1", API_TOKENS: "t" }),
        ),
      )
      const context = await Effect.runPromise(Layer.buildWithScope(system, scope))
      const { address } = Context.get(context, HttpServer.HttpServer)
      url = `http://127.0.0.1:${address._tag === "TcpAddress" ? address.port : 0}`
      for (const [index, name] of ["Headphones", "Earphones", "Microphone", "Tent"].entries())
        expect((await put(String(455 + index), name)).status).toBe(201)
    }, 60_000)
    afterAll(async () => {
      await Effect.runPromise(Scope.close(scope, Exit.void))
      rmSync(folder, { recursive: true })
    }, 60_000)

    const said = (out: string) =>
      out
        .trim()
        .split("\n")
        .map((line) => line.toLowerCase())

    test("Python", async () => {
      await install("openapi-python-client")
      const out = ["--path", openapi, "--output-path", join(folder, "python"), "--overwrite"]
      const generated = await run("python3", "-m", "openapi_python_client", "generate", ...out)
      expect(generated).not.toContain("WARNING")
      writeFileSync(join(folder, "shop.py"), example("python"))
      expect(said(await run("python3", "shop.py", url, "t"))).toEqual([
        expect.stringMatching(/^recorded [0-9a-f]{64}$/),
        "duplicate false",
        "duplicate true",
        "refused 422 /problems#invalid-input query",
        expect.stringMatching(/^by taste \[('\w+'(, )?){3}\]$/),
      ])
    }, 300_000)

    const guzzle = "/usr/share/php/GuzzleHttp/autoload.php"
    const hasPhp = Bun.which("php") !== null && Bun.which("java") !== null
    test.skipIf(!hasPhp)(
      "PHP, where Java, PHP and Debian's Guzzle are installed",
      async () => {
        await install("openapi-generator-cli")
        const options = ["-g", "php", "-i", openapi, "-o", join(folder, "php")]
        const named = "--additional-properties=invokerPackage=UserEmbeddings"
        await run(join(packages, "bin/openapi-generator-cli"), "generate", ...options, named)
        mkdirSync(join(folder, "vendor"))
        const autoload = `<?php
require '${guzzle}';
spl_autoload_register(function ($class) {
    $file = '${folder}/php/lib/' . str_replace('\\\\', '/', substr($class, strlen('UserEmbeddings\\\\'))) . '.php';
    if (str_starts_with($class, 'UserEmbeddings\\\\') && is_file($file)) require $file;
});`
        writeFileSync(join(folder, "vendor/autoload.php"), autoload)
        writeFileSync(join(folder, "shop.php"), example("php"))
        expect(said(await run("php", "shop.php", url, "t"))).toEqual([
          expect.stringMatching(/^recorded [0-9a-f]{64}$/),
          expect.stringMatching(/^duplicate (true|false)$/),
          "duplicate true",
          "refused 422 /problems#invalid-input query",
          "by taste 3",
        ])
      },
      300_000,
    )
  })
