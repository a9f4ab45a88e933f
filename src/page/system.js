/** What moves: the stages, the charts, the ladder. Fed with one look at the system after the other. */
import { chart } from "./charts.js"
import { byId, count, h, rate, seconds } from "./dom.js"

const sum = (numbers) => numbers.reduce((total, n) => total + n, 0)

/** The stages of an interaction's way, as far as this look could see them. */
const stages = ({ log, queues }) => {
  const main = queues?.user_embedding_updates
  const waiting = main?.ready ?? 0
  const inHand = main?.unacked ?? 0
  const retrying = queues === null ? 0 : sum(Object.values(queues.retry)) + queues.isolated
  const failed = queues?.failed ?? 0
  const accepted = log?.total ?? null
  const published = accepted === null ? null : accepted - log.unpublished
  const known = published !== null && queues !== null
  const consumed = known ? Math.max(0, published - waiting) : null
  const written = known ? Math.max(0, consumed - inHand - retrying - failed) : null
  return {
    accepted,
    published,
    consumed,
    written,
    waiting,
    inHand,
    retrying,
    failed,
    unpublished: log?.unpublished ?? null,
  }
}

const counted = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`

const meanings = {
  Accepted: "rows of the interaction log: what clients were told is safe",
  Published: "rows that the broker has confirmed",
  Consumed: "published, and no longer waiting in the queue",
  Written: "folded into an embedding, or skipped because the product has no vector",
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

export const system = () => {
  const depth = chart(byId("depth"), {
    title: "Queue depth",
    counted: true,
    value: (n) => count(n),
    series: [
      { label: "waiting", colour: "--accent", fill: true },
      { label: "retrying", colour: "--amber" },
      { label: "failed", colour: "--red" },
    ],
  })
  const throughput = chart(byId("throughput"), {
    title: "Per second",
    value: (n) => (n === null ? "–" : n >= 100 ? count(n) : Number(n.toFixed(1)).toString()),
    series: [
      { label: "accepted", colour: "--muted" },
      { label: "written", colour: "--teal", fill: true },
    ],
  })
  const lag = chart(byId("lag"), {
    title: "Event to embedding",
    value: (s) => seconds(s),
    series: [
      { label: "p50", colour: "--teal", fill: true },
      { label: "p95", colour: "--accent" },
      { label: "p99", colour: "--rose" },
    ],
  })
  const all = [depth, throughput, lag]
  byId("funnel").replaceChildren(
    ...Object.keys(meanings).map((name) => stage(name, null, undefined, "not seen yet", false)),
  )
  let last

  const show = (stats) => {
    const now = Date.now() / 1_000
    const seen = stages(stats)
    const before = last?.seen
    const speed = (name) =>
      before === undefined || seen[name] === null || before[name] === null
        ? undefined
        : Math.max(0, (seen[name] - before[name]) / Math.max(0.2, now - last.now))
    const { consumers } = stats.queues?.user_embedding_updates ?? { consumers: 0 }
    byId("funnel").replaceChildren(
      stage(
        "Accepted",
        seen.accepted,
        speed("accepted"),
        `${count(seen.unpublished)} to publish`,
        seen.unpublished > 0,
      ),
      stage(
        "Published",
        seen.published,
        speed("published"),
        `${count(seen.waiting)} waiting`,
        seen.waiting > 0,
      ),
      stage(
        "Consumed",
        seen.consumed,
        speed("consumed"),
        [
          `${count(seen.inHand)} in work`,
          seen.retrying > 0 && `${count(seen.retrying)} retrying`,
          `${count(seen.failed)} failed`,
        ]
          .filter(Boolean)
          .join(", "),
        seen.retrying > 0,
      ),
      stage(
        "Written",
        seen.written,
        speed("written"),
        `${counted(stats.users, "user")}, ${counted(consumers, "consumer")}`,
        // Nobody writes.
        stats.queues !== null && consumers === 0,
      ),
    )
    depth.add(now, [seen.waiting, seen.retrying, seen.failed])
    throughput.add(now, [speed("accepted"), speed("written")])
    const waited = stats.event_to_embedding_s
    lag.add(now, [waited?.p50, waited?.p95, waited?.p99])
    ladder(stats.queues)
    byId("unavailable").textContent =
      stats.unavailable.length === 0 ? "" : `Not available: ${stats.unavailable.join("; ")}`
    last = { now, seen }
  }

  const draw = () => {
    for (const one of all) one.draw()
  }
  return { show, draw }
}

const rung = (label, n, most, kind) =>
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

const ladder = (queues) => {
  if (queues === null)
    return byId("ladder").replaceChildren(h("p", { class: "quiet" }, "The queues cannot be seen."))
  const rungs = Object.entries(queues.retry).sort(([a], [b]) => Number(a) - Number(b))
  const most = Math.max(queues.isolated, queues.failed, ...rungs.map(([, n]) => n))
  return byId("ladder").replaceChildren(
    h(
      "ol",
      {},
      ...rungs.map(([millis, n]) => rung(`after ${delay(Number(millis))}`, n, most, "amber")),
      rung("isolated", queues.isolated, most, "rose"),
      rung("failed", queues.failed, most, "red"),
    ),
    h(
      "p",
      { class: "quiet" },
      "A message that fails waits on the next rung; after the last it is a dead letter.",
    ),
  )
}
