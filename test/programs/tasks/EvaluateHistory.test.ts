/** The command `evaluate`: reads a history and products from files, prints a table and a sentence. */
import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { baselines, randomOf } from "../../../src/services/history/Evaluation.ts"
import { bundledProgram } from "../../support/bundledProgram.ts"

const folder = mkdtempSync(join(tmpdir(), "evaluate-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const main = await bundledProgram("src/programs/main.ts")

const run = async (...args: ReadonlyArray<string>) => {
  const child = Bun.spawn([process.execPath, main, "evaluate", ...args], {
    cwd: folder,
    env: { PATH: process.env.PATH ?? "", EMBEDDING_DIMENSIONS: "8", OPENAI_API_KEY: "unused" },
    stdout: "pipe",
    stderr: "pipe",
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stderr, stdout }
}

const random = randomOf(1)
const products = join(folder, "products.jsonl")
writeFileSync(
  products,
  Array.from({ length: 100 }, (_, p) =>
    JSON.stringify({
      product_id: `p-${p}`,
      product_name: `Product ${p}`,
      category: "all",
      vector: Array.from({ length: 8 }, () => random() - 0.5),
    }),
  ).join("\n"),
)
const history = join(folder, "history.csv")
const records = Array.from(
  { length: 1_500 },
  (_, n) =>
    `u-${Math.floor(random() * 60)},p-${Math.floor(random() ** 4 * 100)},${1_700_000_000 + n * 3_600}`,
)
// One record occurs twice.
writeFileSync(history, ["who,what,when", ...records, "broken", records[7], ""].join("\n"))
const reading = ["--map", "user_id=who,product_id=what,occurred_at=when", "--set", "event_type=purchase"]

test("when everybody buys popular products, the simple method wins; the present configuration is among the rows", async () => {
  const { code, stdout } = await run(history, "--products", products, ...reading, "--most", "150")
  expect(code).toBe(0)
  expect(stdout).toStartWith("1,500 interactions (1 unreadable), 100 products; 150 events of ")
  expect(stdout).toContain("A simple method wins: popular.")
  expect(stdout).toMatch(/\(configured\) +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]/)
  const lines = stdout.split("\n")
  const best = /The best taste \((.*)\) is behind/.exec(stdout)?.[1]
  expect(lines.some((line) => best !== undefined && line.startsWith(best))).toBe(true)
  const first = lines.find((line) => line.includes("["))
  expect(first).toMatch(/^popular|popularity 0\.2/)
}, 60_000)

test("--json has every method with its intervals, and the verdict", async () => {
  const { stdout } = await run(history, "--products", products, ...reading, "--most", "50", "--json")
  const { foretold, rows, verdict } = JSON.parse(stdout)
  expect(foretold).toBe(50)
  // The last four are the configured setting with other weights of together and again.
  expect(rows.length).toBe(baselines.length + 4 * 2 * 2 * 2 * 2 + 4)
  for (const { hit_rate, mrr, ndcg } of rows)
    for (const { high, low, mean } of [hit_rate, mrr, ndcg])
      expect(low <= mean && mean <= high && low >= 0 && high <= 1).toBe(true)
  expect(["simple", "undecided"]).toContain(verdict.says)
}, 60_000)

test("without anything to predict it says so, and exits with 1", async () => {
  const { code, stderr } = await run(history, "--products", products, ...reading, "--target", "product_view")
  expect([code, stderr.split("\n").find((line) => line.startsWith("user-embeddings:"))]).toEqual([
    1,
    "user-embeddings: nothing to predict: the last fifth of 1500 interactions has no product_view of a product with a vector by a user with earlier interactions",
  ])
}, 60_000)

test("when taste wins, it prints the variables to set, weights included", async () => {
  const kinds = 12
  const centres = Array.from({ length: kinds }, () => Array.from({ length: 8 }, () => random() - 0.5))
  const things = join(folder, "things.jsonl")
  writeFileSync(
    things,
    Array.from({ length: 240 }, (_, p) =>
      JSON.stringify({
        product_id: `t-${p}`,
        product_name: `Thing ${p}`,
        category: "all",
        vector: centres[p % kinds]!.map((x) => x + 0.1 * (random() - 0.5)),
      }),
    ).join("\n"),
  )
  // Each user buys products of one kind, which changes now and then, and views products of all kinds.
  const tastes = join(folder, "tastes.jsonl")
  writeFileSync(
    tastes,
    Array.from({ length: 6_000 }, (_, n) => {
      const user = n % 100
      const kind = (user + Math.floor(n / 2_000) * 5) % kinds
      const buys = Math.floor(n / 100) % 3 === 2
      const thing = buys ? kind + kinds * Math.floor(random() * 20) : Math.floor(random() * 240)
      return JSON.stringify({
        user_id: `u-${user}`,
        event_type: buys ? "purchase" : "view",
        product_id: `t-${thing}`,
        occurred_at: 1_700_000_000 + n * 600,
      })
    }).join("\n"),
  )
  const { stdout } = await run(tastes, "--products", things, "--target", "product_purchase", "--most", "250")
  const [, lambda, weights, history, popularity, together, again] =
    /^Taste wins: taste λ (\S+), (\w+) weights, (\w+), \w+, popularity (\S+), together (\S+), again (\S+),/m.exec(
      stdout,
    ) ?? []
  expect(stdout).toContain(
    `\nEMBEDDING_DECAY_LAMBDA=${lambda} EMBEDDING_HISTORY=${history} POPULARITY_WEIGHT=${popularity} TOGETHER_WEIGHT=${together} AGAIN_WEIGHT=${again}\n`,
  )
  const [purchase, search, click, view] = weights === "equal" ? [1, 1, 1, 1] : [1, 0.7, 0.5, 0.3]
  expect(stdout).toContain(
    `\nEMBEDDING_WEIGHT_SEARCH=${search} EMBEDDING_WEIGHT_VIEW=${view} EMBEDDING_WEIGHT_CLICK=${click} EMBEDDING_WEIGHT_PURCHASE=${purchase}\n`,
  )
}, 60_000)
