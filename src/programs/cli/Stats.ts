/** `stats`: figures of the system. */
import { Effect } from "effect"
import { write } from "../../layers/files/StandardOutput.ts"
import * as Stack from "../../layers/Stack.ts"
import { inWords } from "../../services/operate/Attention.ts"
import * as SystemStats from "../../services/operate/SystemStats.ts"
import { quarantineQueue, queue, retryQueue } from "../../services/ports/InteractionQueue.ts"
import { CommandFailed } from "../tasks/ProvisionServers.ts"
import { json, print, red, table, yellow } from "./support/Output.ts"
import { waiting } from "./support/Progress.ts"
import { command, flag } from "./support/Usage.ts"

const refresh = "2 seconds"

const count = (n: number | null | undefined) => n?.toLocaleString("en-US") ?? "-"
const seconds = (s: number | null | undefined) => (s === null || s === undefined ? "-" : `${s.toFixed(3)} s`)
const rate = (perSecond: number | undefined) => (perSecond === undefined ? "-" : `${perSecond.toFixed(1)}/s`)

const age = (s: number | null) => (s === null ? "-" : inWords(s))

const paint = { critical: red, warning: yellow } as const
const workerRow = ({ held, outage, per_second, seen_s, worker }: typeof SystemStats.WorkerFigures.Type) => [
  worker,
  count(held),
  rate(per_second),
  `${inWords(seen_s)} ago`,
  outage === null ? "" : `for ${inWords(outage.for_s)}: ${outage.reason}`,
]

const inTables = (stats: SystemStats.SystemStats) => {
  const { attention, event_to_embedding_s: waited, log, queues, rates, unavailable, users, workers } = stats
  const main = queues?.user_embedding_updates
  return [
    ...attention.map(({ document, level, text }) => paint[level](`${text} (docs/${document})`)),
    table(
      ["WAITING", "OLDEST WAITING", "NEWEST APPLIED"],
      [[count(stats.waiting), age(stats.oldest_waiting_s), age(stats.newest_applied_s)]],
    ),
    table(
      ["QUEUE", "READY", "UNACKED", "CONSUMERS", "PUBLISH", "DELIVER", "ACK"],
      [
        [queue, count(main?.ready), count(main?.unacked), count(main?.consumers)].concat(
          rate(rates?.publish),
          rate(rates?.deliver),
          rate(rates?.ack),
        ),
        ...Object.entries(queues?.retry ?? {}).map(([delay, n]) => [retryQueue(Number(delay)), count(n)]),
        [quarantineQueue, count(queues?.isolated)],
        ["failed", count(queues?.failed)],
      ],
    ),
    table(
      ["LOG", "UNPUBLISHED", "OLDEST UNPUBLISHED", "PAIRS NOT COUNTED", "USERS"],
      [
        [count(log?.total), count(log?.unpublished), seconds(log?.oldest_unpublished_s)].concat(
          count(stats.uncounted_pairs),
          count(users),
        ),
      ],
    ),
    ...(workers === null || workers.length === 0
      ? []
      : [table(["WORKER", "HOLDS", "RATE", "SEEN", "OUTAGE"], workers.map(workerRow))]),
    table(
      ["EVENT TO EMBEDDING", "P50", "P95", "P99"],
      [["live events, last 5 min", seconds(waited?.p50), seconds(waited?.p95), seconds(waited?.p99)]],
    ),
    ...unavailable.map((why) => `not available: ${why}`),
  ].join("\n\n")
}

export const stats = command(
  "stats",
  "Shows what waits and since when, queue depths, workers, rates, the outbox, the number of users, and how long events take to reach an embedding",
  { watch: flag("watch", "Refresh every 2 seconds until Ctrl-C"), json },
  ({ json, watch }) =>
    Effect.gen(function* () {
      if (watch) {
        // A terminal redraws the figures in place; elsewhere each refresh appends to the output.
        const clear = process.stdout.isTTY && !json ? "\u001b[H\u001b[2J" : ""
        const show = Effect.flatMap(SystemStats.look, (stats) =>
          write(json ? `${JSON.stringify(stats)}\n` : `${clear}${inTables(stats)}\n\n`),
        )
        return yield* Effect.forever(Effect.zipLeft(show, Effect.sleep(refresh))).pipe(
          Effect.provide(Stack.layer),
        )
      }
      const found = yield* waiting("reading the figures")(Effect.provide(SystemStats.look, Stack.layer))
      yield* print(json, found, inTables)
      if (found.unavailable.length > 0)
        return yield* new CommandFailed({ message: "some figures are not available" })
    }),
)
