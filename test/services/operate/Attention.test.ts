/** What a person is told to act on, and that the documents say what to do. */
import { expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { resolve } from "node:path"
import { documentPage } from "../../../src/layers/http/DocumentPage.ts"
import { attentionTo, inWords } from "../../../src/services/operate/Attention.ts"

type Figures = Parameters<typeof attentionTo>[0]
const quiet: Figures = {
  queues: {
    user_embedding_updates: { ready: 0, unacked: 0, consumers: 1 },
    isolated: 0,
    retry: {},
    failed: 0,
  },
  rates: null,
  log: { total: 5, unpublished: 0, oldest_unpublished_s: null },
  waiting: 0,
  oldest_waiting_s: null,
  newest_applied_s: 3,
  uncounted_pairs: 0,
  workers: [],
  users: 1,
  event_to_embedding_s: null,
  unavailable: [],
}
const withoutConsumer = {
  ...quiet.queues!,
  user_embedding_updates: { ready: 7, unacked: 0, consumers: 0 },
}
const worker = { worker: "host:1", seen_s: 4, held: 0, per_second: 0, outage: null }
const waits = { ...worker, outage: { reason: "MongoDB at db: gone", for_s: 720 } }
const told = (change: Partial<Figures>) =>
  attentionTo({ ...quiet, ...change }).map(({ level, text }) => `${level}: ${text}`)

test("nothing is said while events are applied, or while only few of them have just arrived", () => {
  expect(told({})).toEqual([])
  expect(told({ waiting: 3, oldest_waiting_s: 5 })).toEqual([])
  expect(told({ queues: withoutConsumer, waiting: 7, oldest_waiting_s: 5 })).toEqual([])
})

test("events that wait without a worker are critical", () => {
  const late = { waiting: 7, oldest_waiting_s: 125 }
  expect(told({ queues: withoutConsumer, ...late })).toEqual([
    "critical: No worker is running: 7 events wait, the oldest for 2 min",
  ])
  // The last report of a worker that died.
  const dead = { ...worker, seen_s: 125 }
  expect(told({ queues: withoutConsumer, ...late, waiting: 1, workers: [dead] })).toEqual([
    "critical: No worker is running: 1 event waits, the oldest for 2 min",
  ])
  // A worker of an earlier release does not report. During an outage a worker does not consume.
  expect(told(late)).toEqual([
    "warning: 7 events wait, the oldest for 2 min: the workers are too few, or something is slow",
  ])
  expect(told({ queues: withoutConsumer, ...late, workers: [waits] })).toEqual([
    "warning: 1 of 1 worker has waited for 12 min: MongoDB at db: gone. 7 events wait, the oldest for 2 min",
  ])
  // Nothing is claimed that is not known.
  expect(told({ queues: null, waiting: null, oldest_waiting_s: null, workers: null })).toEqual([])
})

test("an outbox that does not empty and dead letters want somebody", () => {
  expect(
    told({
      waiting: 2,
      oldest_waiting_s: 300,
      log: { total: 5, unpublished: 2, oldest_unpublished_s: 300 },
      queues: { ...quiet.queues!, failed: 1 },
    }),
  ).toEqual([
    "warning: 2 recorded events are not published to the queue, the oldest for 5 min",
    "warning: 1 dead letter waits for a decision: retry or remove",
  ])
})

test("ages are in words", () => {
  expect([0, 99, 100, 5_999, 6_000, 172_800].map(inWords)).toEqual([
    "0 s",
    "99 s",
    "2 min",
    "100 min",
    "2 h",
    "2 days",
  ])
})

test("every document that the page refers to has the part that it names", () => {
  const root = resolve(import.meta.dir, "../../..")
  const scripts = readdirSync(resolve(root, "src/page")).filter((name) => name.endsWith(".js"))
  const sources = [...scripts.map((name) => `src/page/${name}`), "src/services/operate/Attention.ts"]
  const references = sources.flatMap((path) =>
    [...readFileSync(resolve(root, path), "utf8").matchAll(/"([\w-]+\.md)#([\w-]+)"/g)].map(
      ([, name, anchor]) => [name!, anchor!],
    ),
  )
  expect(references.length).toBeGreaterThan(5)
  for (const [name, anchor] of references)
    expect(documentPage(name!, readFileSync(resolve(root, "docs", name!), "utf8"))).toContain(
      `id="${anchor}"`,
    )
})

test("a document becomes a page: headings with anchors, tables, lists, code, and only links that lead somewhere", () => {
  const page = documentPage(
    "a.md",
    "# A <b>\n\nSee [b](b.md#c), [code](../src/x.ts), `<i>` and **bold**.\n\n- one\n- two\n\n| h |\n| --- |\n| c |\n\n```sh\na < b\n\nc\n```\n",
  )
  for (const part of [
    '<h1 id="a-b">A &lt;b&gt;</h1>',
    '<p>See <a href="b.md#c">b</a>, code, <code>&lt;i&gt;</code> and <b>bold</b>.</p>',
    "<ul><li>one</li><li>two</li></ul>",
    "<table><thead><tr><th>h</th></tr></thead><tbody><tr><td>c</td></tr></tbody></table>",
    '<pre tabindex="0">a &lt; b\n\nc</pre>',
  ])
    expect(page).toContain(part)
  expect(documentPage("a.md", "[b](b.md#c)", () => false)).toContain("<p>b</p>")
})
