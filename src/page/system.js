/** What to act on, the stages of the pipeline, the charts, the workers and the retry queues. */
import { get } from "./api.js"
import { chart } from "./charts.js"
import { foreignDeadLetters } from "./deadLetters.js"
import { ago, byId, count, documentLink, explained, h, rate, seconds } from "./dom.js"

const sum = (numbers) => numbers.reduce((total, n) => total + n, 0)

/** Interactions at each stage; `null` where the figures are not available. */
const stages = ({ log, queues }) => {
  const main = queues?.user_embedding_updates
  const waiting = main?.ready ?? 0
  const unacked = main?.unacked ?? 0
  const retrying = queues === null ? 0 : sum(Object.values(queues.retry)) + queues.isolated
  const failed = queues?.failed ?? 0
  const accepted = log?.total ?? null
  const published = accepted === null ? null : accepted - log.unpublished
  const known = published !== null && queues !== null
  const consumed = known ? Math.max(0, published - waiting) : null
  const own = Math.max(0, failed - foreignDeadLetters())
  const written = known ? Math.max(0, consumed - unacked - retrying - own) : null
  return {
    accepted,
    published,
    consumed,
    written,
    waiting,
    unacked,
    retrying,
    failed,
    unpublished: log?.unpublished ?? null,
  }
}

const counted = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`
/** `12 waiting, the oldest for 2 min`. */
const withAge = (text, age) =>
  age === null || age === undefined ? text : `${text}, the oldest for ${ago(age)}`

const meanings = {
  Accepted: "Rows of the interaction log: recorded, and confirmed to clients.",
  Published: "Rows whose message the queue has confirmed.",
  Consumed: "Published, and no longer waiting in the queue.",
  Written: "Applied to an embedding, or skipped because the product has no embedding.",
}

const stage = (name, total, perSecond, gap) =>
  h(
    "li",
    {},
    h("span", { class: "name" }, explained(name, meanings[name])),
    h("b", {}, count(total)),
    h("span", { class: "rate" }, rate(perSecond)),
    h("span", { class: "gap" }, gap),
  )

const charts = () => ({
  depth: chart(byId("depth"), {
    title: "Messages",
    help: "Waiting: in the outbox, in a queue or held by a worker. Retrying: of these, on a retry queue or in quarantine. Failed: dead letters.",
    unit: "count",
    value: (n) => count(n),
    series: [
      { label: "waiting", kind: "first" },
      { label: "retrying", kind: "second" },
      { label: "failed", kind: "third" },
    ],
  }),
  oldest: chart(byId("oldest"), {
    title: "Oldest waiting",
    help: "Age of the oldest event that waits, at least. 0 if none waits.",
    unit: "time",
    value: (s) => seconds(s),
    series: [{ label: "age", kind: "first" }],
  }),
  throughput: chart(byId("throughput"), {
    title: "Per second",
    help: "Recorded: rows of the log. Applied: messages that workers have acknowledged.",
    value: (n) => (n === null ? "–" : n >= 100 ? count(n) : Number(n.toFixed(1)).toString()),
    series: [
      { label: "applied", kind: "first" },
      { label: "recorded", kind: "second" },
    ],
  }),
  lag: chart(byId("lag"), {
    title: "Event to embedding",
    help: "From recording an event to writing its embedding: half of the events, and 95 of 100, took no longer. Only live events of the last five minutes, no imported history.",
    unit: "time",
    value: (s) => seconds(s),
    series: [
      { label: "p95", kind: "first" },
      { label: "p50", kind: "second" },
    ],
  }),
})

const showStages = (now, speed, stats) => {
  const { log, newest_applied_s, oldest_waiting_s, queues, users } = stats
  const consumers = queues?.user_embedding_updates.consumers ?? 0
  const inWork = [
    `${count(now.unacked)} in work`,
    now.retrying > 0 && `${count(now.retrying)} retrying`,
    `${count(now.failed)} failed`,
  ]
  const newest = newest_applied_s === null ? "" : `, newest ${ago(newest_applied_s)} ago`
  byId("funnel").replaceChildren(
    stage(
      "Accepted",
      now.accepted,
      speed("accepted"),
      withAge(`${count(now.unpublished)} to publish`, now.unpublished > 0 ? log?.oldest_unpublished_s : null),
    ),
    stage(
      "Published",
      now.published,
      speed("published"),
      withAge(`${count(now.waiting)} waiting`, now.waiting > 0 ? oldest_waiting_s : null),
    ),
    stage("Consumed", now.consumed, speed("consumed"), inWork.filter(Boolean).join(", ")),
    stage(
      "Written",
      now.written,
      speed("written"),
      `${counted(users, "user")}, ${counted(consumers, "consumer")}${newest}`,
    ),
  )
}

/** A screen reader reads the banners when there are others, not whenever an age in them grows. */
const showAttention = (attention) => {
  const place = byId("attention")
  const subjects = attention.map(({ document, level }) => `${level} ${document}`).join(" ")
  place.replaceChildren(
    ...attention.map(({ document, level, text }) =>
      h("p", { class: level }, h("span", {}, text), documentLink(document, "What to do")),
    ),
  )
  if (place.dataset.subjects === subjects) return
  place.dataset.subjects = subjects
  byId("announced").textContent = attention.map(({ text }) => text).join(". ")
}

const showFirstStep = ({ log }) => {
  if (log !== null) byId("first-step").hidden = log.total > 0
}

/** A worker that has been silent for longer has died, or has lost the database. */
const silentAfter = 30

const workerRow = ({ held, outage, per_second, seen_s, worker }) => {
  const isSilent = seen_s > silentAfter
  const trouble = isSilent
    ? "silent: it has died, or has lost the database"
    : outage && `waits for ${ago(outage.for_s)}: ${outage.reason}`
  return h(
    "tr",
    {},
    h(
      "td",
      { class: "what" },
      h("span", { title: worker }, worker),
      trouble && h("small", { class: "act" }, trouble),
    ),
    h("td", { class: "number" }, isSilent ? "–" : count(held)),
    h("td", { class: "number" }, isSilent ? "–" : rate(per_second)),
    h("td", { class: "when" }, `${ago(seen_s)} ago`),
  )
}

const heading = (name, help, kind = "") =>
  h("th", { scope: "col", class: kind }, help ? explained(name, help) : name)

const showWorkers = (workers) => {
  const place = byId("workers")
  byId("workers-count").textContent = workers?.length ? count(workers.length) : ""
  if (workers === null)
    return place.replaceChildren(h("p", { class: "quiet" }, "The reports of the workers are not available."))
  if (workers.length === 0)
    return place.replaceChildren(
      h(
        "p",
        { class: "quiet" },
        "No worker has reported in the last 15 minutes. ",
        h("code", {}, "bun run worker"),
        " starts one.",
      ),
    )
  place.replaceChildren(
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heading("Worker", "Host name and process id."),
          heading("Holds", "Messages that it has received and not settled.", "number"),
          heading(
            "Rate",
            "Messages acknowledged per second, in the ten seconds before its last report.",
            "number",
          ),
          heading(
            "Report",
            "A worker reports every ten seconds. One that stops in order takes its report away.",
            "when",
          ),
        ),
      ),
      h("tbody", {}, ...workers.map(workerRow)),
    ),
  )
}

// ---------------------------------------------------------------------------------------------------------
// Over time

const ranges = [
  ["10 min", 600],
  ["1 h", 3_600],
  ["6 h", 21_600],
  ["24 h", 86_400],
]
/** Seconds of live points. Older ones come from the history of the API, a sample a minute. */
const liveSeconds = 660
const historyEvery = 60_000
const shortestRange = 120

const figures = {
  depth: ({ failed, retrying, waiting }) => [waiting, retrying, failed],
  oldest: ({ oldest_waiting_s, waiting }) => [waiting === 0 ? 0 : oldest_waiting_s],
  throughput: ({ applied, recorded }) => [applied, recorded],
  lag: ({ p50, p95 }) => [p95, p50],
}

const overTime = () => {
  const drawn = charts()
  let range = Number(localStorage.getItem("user-embeddings range")) || 600
  let history = []
  let live = []

  const draw = () => {
    const to = Date.now() / 1_000
    const first = live[0]?.at ?? Number.POSITIVE_INFINITY
    const samples = [...history.filter(({ at }) => at < first), ...live]
    const since = samples[0]?.at
    // A chart does not begin long before the first point.
    const from = Math.max(to - range, Math.min(since ?? to, to - shortestRange))
    for (const [name, valuesOf] of Object.entries(figures))
      drawn[name].show(
        samples.map((sample) => ({ at: sample.at, values: valuesOf(sample) })),
        from,
        to,
      )
    byId("history-note").textContent =
      since === undefined || since <= to - range + 120
        ? ""
        : `known for ${ago(to - since)}: history begins with the API`
  }
  const showRanges = () =>
    byId("ranges").replaceChildren(
      ...ranges.map(([name, length]) =>
        h(
          "button",
          {
            type: "button",
            class: "small",
            "aria-pressed": String(length === range),
            onclick: () => {
              range = length
              localStorage.setItem("user-embeddings range", String(length))
              showRanges()
              byId("ranges").querySelector("[aria-pressed=true]").focus()
              draw()
            },
          },
          name,
        ),
      ),
    )
  const load = async () => {
    try {
      history = (await get("/api/system/history")).samples
      draw()
    } catch {
      // Without a token, or while the API is away, the live points are all there is.
    }
  }
  showRanges()
  setInterval(load, historyEvery)
  return {
    load,
    draw,
    add: (sample) => {
      live = [...live.filter(({ at }) => at > sample.at - liveSeconds), sample]
      draw()
    },
  }
}

export const system = () => {
  const time = overTime()
  byId("funnel").replaceChildren(
    ...Object.keys(meanings).map((name) => stage(name, null, undefined, "not loaded yet")),
  )
  let last

  const show = (stats) => {
    const at = Date.now() / 1_000
    const now = stages(stats)
    const before = last?.now
    const speed = (name) =>
      before === undefined || now[name] === null || before[name] === null
        ? undefined
        : Math.max(0, (now[name] - before[name]) / Math.max(0.2, at - last.at))
    showAttention(stats.attention)
    showFirstStep(stats)
    showStages(now, speed, stats)
    time.add({
      at,
      waiting: stats.waiting,
      oldest_waiting_s: stats.oldest_waiting_s,
      retrying: now.retrying,
      failed: now.failed,
      recorded: speed("accepted") ?? null,
      applied: speed("written") ?? null,
      p50: stats.event_to_embedding_s?.p50 ?? null,
      p95: stats.event_to_embedding_s?.p95 ?? null,
    })
    showWorkers(stats.workers)
    showRetryQueues(stats.queues)
    byId("unavailable").textContent =
      stats.unavailable.length === 0 ? "" : `Not available: ${stats.unavailable.join("; ")}`
    byId("updated").textContent = `updated ${new Date().toLocaleTimeString("en-GB")}`
    last = { at, now }
  }
  return { show, draw: time.draw, loadHistory: time.load }
}

const queueRow = (label, n, most) =>
  h(
    "li",
    {},
    h("span", {}, label),
    h("span", { class: "track" }, h("i", { class: "fill", width: `${most === 0 ? 0 : (100 * n) / most}%` })),
    h("b", { class: n > 0 ? "some" : "" }, count(n)),
  )

const delay = (millis) => (millis < 1_000 ? `${millis} ms` : `${millis / 1_000} s`)

const showRetryQueues = (queues) => {
  if (queues === null)
    return byId("retry-queues").replaceChildren(h("p", { class: "quiet" }, "The queues are not available."))
  const delays = Object.entries(queues.retry).sort(([a], [b]) => Number(a) - Number(b))
  const most = Math.max(queues.isolated, queues.failed, ...delays.map(([, n]) => n))
  const quarantine = explained(
    "quarantine",
    "Messages that were in hand when workers died. They are handled in small companies, to find the one that kills.",
  )
  const failed = explained("failed", "Dead letters: out of retries, or hopeless from the start.")
  return byId("retry-queues").replaceChildren(
    h(
      "ol",
      {},
      ...delays.map(([millis, n]) => queueRow(`after ${delay(Number(millis))}`, n, most)),
      queueRow(quarantine, queues.isolated, most),
      queueRow(failed, queues.failed, most),
    ),
    h(
      "p",
      { class: "quiet" },
      "A failed message waits in the next retry queue. After the last one it becomes a dead letter. ",
      documentLink("operations.md#quarantine", "Quarantine"),
    ),
  )
}
