/** The stages of the pipeline, the charts and the retry queues, from one SystemStats after another. */
import { chart } from "./charts.js"
import { foreignDeadLetters } from "./deadLetters.js"
import { byId, count, h, rate, seconds } from "./dom.js"

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

const meanings = {
  Accepted: "rows of the interaction log: recorded and confirmed to clients",
  Published: "rows whose message the queue has confirmed",
  Consumed: "published and no longer waiting in the queue",
  Written: "applied to an embedding, or skipped because the product has no embedding",
}

const stage = (name, total, perSecond, gap, isWaiting) =>
  h(
    "li",
    { title: meanings[name] },
    h("span", { class: "name" }, name),
    h("b", {}, count(total)),
    h("span", { class: "rate" }, rate(perSecond)),
    h("span", { class: `gap${isWaiting ? " waiting" : ""}` }, gap),
  )

const charts = () => ({
  depth: chart(byId("depth"), {
    title: "Queue depth",
    counted: true,
    value: (n) => count(n),
    series: [
      { label: "waiting", colour: "--accent", fill: true },
      { label: "retrying", colour: "--amber" },
      { label: "failed", colour: "--red" },
    ],
  }),
  throughput: chart(byId("throughput"), {
    title: "Per second",
    value: (n) => (n === null ? "–" : n >= 100 ? count(n) : Number(n.toFixed(1)).toString()),
    series: [
      { label: "accepted", colour: "--muted" },
      { label: "written", colour: "--teal", fill: true },
    ],
  }),
  lag: chart(byId("lag"), {
    title: "Event to embedding",
    value: (s) => seconds(s),
    series: [
      { label: "p50", colour: "--teal", fill: true },
      { label: "p95", colour: "--accent" },
      { label: "p99", colour: "--rose" },
    ],
  }),
})

const showStages = (now, speed, { queues, users }) => {
  const consumers = queues?.user_embedding_updates.consumers ?? 0
  const inWork = [
    `${count(now.unacked)} in work`,
    now.retrying > 0 && `${count(now.retrying)} retrying`,
    `${count(now.failed)} failed`,
  ]
  const written = `${counted(users, "user")}, ${counted(consumers, "consumer")}`
  const isWithoutConsumer = queues !== null && consumers === 0
  byId("funnel").replaceChildren(
    stage(
      "Accepted",
      now.accepted,
      speed("accepted"),
      `${count(now.unpublished)} to publish`,
      now.unpublished > 0,
    ),
    stage("Published", now.published, speed("published"), `${count(now.waiting)} waiting`, now.waiting > 0),
    stage("Consumed", now.consumed, speed("consumed"), inWork.filter(Boolean).join(", "), now.retrying > 0),
    stage("Written", now.written, speed("written"), written, isWithoutConsumer),
  )
}

export const system = () => {
  const { depth, lag, throughput } = charts()
  byId("funnel").replaceChildren(
    ...Object.keys(meanings).map((name) => stage(name, null, undefined, "not loaded yet", false)),
  )
  let last

  const show = (stats) => {
    const time = Date.now() / 1_000
    const now = stages(stats)
    const before = last?.now
    const speed = (name) =>
      before === undefined || now[name] === null || before[name] === null
        ? undefined
        : Math.max(0, (now[name] - before[name]) / Math.max(0.2, time - last.time))
    showStages(now, speed, stats)
    depth.add(time, [now.waiting, now.retrying, now.failed])
    throughput.add(time, [speed("accepted"), speed("written")])
    const waited = stats.event_to_embedding_s
    lag.add(time, [waited?.p50, waited?.p95, waited?.p99])
    showRetryQueues(stats.queues)
    byId("unavailable").textContent =
      stats.unavailable.length === 0 ? "" : `Not available: ${stats.unavailable.join("; ")}`
    last = { time, now }
  }

  const draw = () => {
    for (const one of [depth, throughput, lag]) one.draw()
  }
  return { show, draw }
}

const queueRow = (label, n, most, kind) =>
  h(
    "li",
    {},
    h("span", {}, label),
    h(
      "span",
      { class: "track" },
      h("i", { class: `fill ${kind}`, width: `${most === 0 ? 0 : (100 * n) / most}%` }),
    ),
    h("b", { class: n > 0 ? "some" : "" }, count(n)),
  )

const delay = (millis) => (millis < 1_000 ? `${millis} ms` : `${millis / 1_000} s`)

const showRetryQueues = (queues) => {
  if (queues === null)
    return byId("retry-queues").replaceChildren(h("p", { class: "quiet" }, "The queues are not available."))
  const delays = Object.entries(queues.retry).sort(([a], [b]) => Number(a) - Number(b))
  const most = Math.max(queues.isolated, queues.failed, ...delays.map(([, n]) => n))
  return byId("retry-queues").replaceChildren(
    h(
      "ol",
      {},
      ...delays.map(([millis, n]) => queueRow(`after ${delay(Number(millis))}`, n, most, "amber")),
      queueRow("quarantine", queues.isolated, most, "rose"),
      queueRow("failed", queues.failed, most, "red"),
    ),
    h(
      "p",
      { class: "quiet" },
      "A failed message waits in the next retry queue. After the last one it becomes a dead letter.",
    ),
  )
}
