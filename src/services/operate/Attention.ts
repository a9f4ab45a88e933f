/** What a person should act on now, the most urgent first. The page and `stats` show the same. Pure. */
import { Schema } from "effect"
import type { SystemStats } from "./SystemStats.ts"

export const Attention = Schema.Struct({
  /** `critical`: no event is applied until somebody acts. */
  level: Schema.Literal("critical", "warning"),
  text: Schema.String,
  /** The part of `docs/` that says what to do. */
  document: Schema.String,
})
export type Attention = typeof Attention.Type

/** A worker reports every ten seconds. One that is silent for longer is not running. */
export const recentSeconds = 30
/** A message on its way is no reason to call anybody. */
const patienceSeconds = 10
/** An event that waits longer than this while workers run: they are too few, or something is slow. */
const lateSeconds = 60

/** `2 min`, for a number of seconds. */
export const inWords = (seconds: number): string => {
  if (seconds < 100) return `${Math.round(seconds)} s`
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`
  if (seconds < 48 * 3_600) return `${Math.round(seconds / 3_600)} h`
  return `${Math.round(seconds / 86_400)} days`
}

const counted = (n: number, singular: string, plural = `${singular}s`) =>
  `${n.toLocaleString("en-US")} ${n === 1 ? singular : plural}`

type Figures = Omit<SystemStats, "attention">

const eventsWait = ({ oldest_waiting_s, waiting }: Figures) =>
  `${counted(waiting ?? 0, "event waits", "events wait")}${
    oldest_waiting_s === null ? "" : `, the oldest for ${inWords(oldest_waiting_s)}`
  }`

const running = ({ workers }: Figures) => workers?.filter(({ seen_s }) => seen_s <= recentSeconds) ?? []

/** A worker of an earlier release does not report, but it consumes. In an outage a worker reports, but does not consume. */
const isWithoutWorker = (figures: Figures) =>
  figures.queues?.user_embedding_updates.consumers === 0 &&
  figures.workers !== null &&
  running(figures).length === 0 &&
  (figures.waiting ?? 0) > 0 &&
  (figures.oldest_waiting_s ?? 0) >= patienceSeconds

/** Workers that wait for the same dependency make one line. */
const outages = (figures: Figures): ReadonlyArray<Attention> => {
  const workers = running(figures)
  const byReason = Map.groupBy(
    workers.flatMap(({ outage }) => outage ?? []),
    ({ reason }) => reason,
  )
  return Array.from(byReason, ([reason, all]) => ({
    level: "warning" as const,
    text: `${all.length} of ${counted(workers.length, "worker")} ${
      all.length === 1 ? "has" : "have"
    } waited for ${inWords(Math.max(...all.map(({ for_s }) => for_s)))}: ${reason}. ${eventsWait(figures)}`,
    document: "operations.md#outages-of-mongodb-or-the-embedding-service",
  }))
}

export const attentionTo = (figures: Figures): ReadonlyArray<Attention> => {
  const found: Array<Attention> = []
  if (isWithoutWorker(figures))
    found.push({
      level: "critical",
      text: `No worker is running: ${eventsWait(figures)}`,
      document: "runbook.md#noconsumers",
    })
  found.push(...outages(figures))
  const { log, oldest_waiting_s, queues } = figures
  const unpublishedFor = log?.oldest_unpublished_s ?? 0
  if (log !== null && unpublishedFor > lateSeconds)
    found.push({
      level: "warning",
      text: `${counted(log.unpublished, "recorded event is", "recorded events are")} not published to the queue, the oldest for ${inWords(unpublishedFor)}`,
      document: "runbook.md#outboxstuck",
    })
  else if (found.length === 0 && (oldest_waiting_s ?? 0) > lateSeconds)
    found.push({
      level: "warning",
      text: `${eventsWait(figures)}: the workers are too few, or something is slow`,
      document: "runbook.md#embeddingslate",
    })
  const failed = queues?.failed ?? 0
  if (failed > 0)
    found.push({
      level: "warning",
      text: `${counted(failed, "dead letter waits", "dead letters wait")} for a decision: retry or remove`,
      document: "operations.md#dead-letters",
    })
  return found
}
