/** `generate`: sends load through the HTTP API, and passes or fails. */
import { Options } from "@effect/cli"
import { Console, Effect, Either, Layer, Option, Redacted } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { parseTokens } from "../../services/AccessTokens.ts"
import * as Auditor from "../../services/operate/Auditor.ts"
import * as Settings from "../../services/Settings.ts"
import type { LoadReport, limits, Progress } from "../tasks/GenerateLoad.ts"
import { CommandFailed } from "../tasks/ProvisionServers.ts"
import { json, print } from "./support/Output.ts"
import { sayingWhere } from "./support/Progress.ts"
import { command, flag, instant, maybe } from "./support/Usage.ts"

const count = (n: number) => n.toLocaleString("en-US")
const seconds = (s: number | null) => (s === null ? "never" : `${s.toFixed(2)} s`)
const percent = (share: number) => `${(share * 100).toFixed(1)} %`

const barWidth = 24
/** Full blocks are embedded events, light blocks accepted ones. */
const bar = ({ accepted, embedded, total }: Progress) => {
  const cells = (n: number) => Math.floor((n / Math.max(1, total)) * barWidth)
  return (
    "█".repeat(cells(embedded)) +
    "▒".repeat(cells(accepted) - cells(embedded)) +
    "░".repeat(barWidth - cells(accepted))
  )
}
const drawing = (progress: Progress) =>
  Effect.sync(() => {
    const { accepted, depth, embedded, total } = progress
    process.stderr.write(
      `\r\u001b[K${bar(progress)} ${count(accepted)} of ${count(total)} accepted, ${count(embedded)} embedded, depth ${count(depth)}`,
    )
  })

const stopped = ({ accepted, embedded, total }: Progress) =>
  `stopped after ${count(accepted)} of ${count(total)} events were accepted and ${count(embedded)} embedded; with the same --seed and --start it goes on`

type Limits = typeof limits

const toText = ({ audit, event_to_embedding_s: waited, ...report }: LoadReport, limits: Limits) =>
  [
    `${count(report.sent)} sent, ${count(report.accepted)} accepted in ${report.seconds.toFixed(1)} s (${report.accepted_per_s}/s)` +
      (report.duplicates > 0 ? `, ${count(report.duplicates)} recorded before` : ""),
    `event to embedding: p50 ${seconds(waited.p50)} · p95 ${seconds(waited.p95)} · p99 ${seconds(waited.p99)}, ${percent(report.embedded_in_time)} within ${limits.seconds} s`,
    `greatest queue depth: ${count(report.max_queue_depth)}`,
    ...(audit === undefined
      ? []
      : [`audit: ${audit.missing} missing · ${audit.extra} extra of ${count(audit.users)} users`]),
    `${report.pass ? "PASS" : "FAIL"}: ${percent(limits.share)} of embeddings within ${limits.seconds} s, depth below ${count(limits.depth)}`,
  ].join("\n")

const positive = (name: string, fallback: number, description: string) =>
  Options.integer(name).pipe(
    Options.withDescription(`${description}; default: ${fallback}`),
    Options.withDefault(fallback),
    Options.filterMap((n) => (n > 0 ? Option.some(n) : Option.none()), `--${name} must be greater than 0`),
  )

export const generate = command(
  "generate",
  "Load test: sends made-up shop events through the HTTP API, waits until they are in the embeddings, and prints PASS or FAIL. Needs the configuration of the system under test, because it reads the embeddings from its stores",
  {
    users: positive("users", 100, "Number of users; a few of them are the most active"),
    events: positive("events", 50, "Average number of events per user"),
    rate: Options.float("rate").pipe(
      Options.withDescription("Events per second; default: as fast as the API answers"),
      Options.filterMap((n) => (n > 0 ? Option.some(n) : Option.none()), "--rate must be greater than 0"),
      Options.optional,
    ),
    seed: Options.integer("seed").pipe(
      Options.withDescription("The same seed gives the same events; default: 1"),
      Options.withDefault(1),
    ),
    start: instant(
      "start",
      "When the first event occurred; default: just before now. Two runs with the same seed and start send the same interactions, which count once",
    ),
    bulk: flag("bulk", "Send many events per request, by POST /api/interactions"),
    check: flag("check", "Run the audit afterwards, and fail when events are missing or extra"),
    url: maybe(Options.text("url"), "Address of the API; default: http://127.0.0.1:API_PORT"),
    token: maybe(
      Options.text("token"),
      "Token for the API; default: the first of API_TOKENS with the scope write",
    ),
    products: maybe(
      Options.file("products", { exists: "yes" }),
      "JSON Lines of products to interact with, stored if they are new; default: the stored products, or a sample catalogue if there are none",
    ),
    json,
  },
  ({ json, token, url, ...options }) =>
    Effect.gen(function* () {
      // The definition of the API takes a tenth of the time of a start, so only this command loads it.
      const { generateLoad, limits } = yield* Effect.promise(() => import("../tasks/GenerateLoad.ts"))
      const port = yield* Settings.API_PORT
      const known = Option.flatMap(yield* Settings.API_TOKENS, (list) =>
        Option.fromNullable(
          Either.getOrThrow(parseTokens(Redacted.value(list))).find(({ scopes }) => scopes.includes("write"))
            ?.secret,
        ),
      )
      const terminal = process.stderr.isTTY
      let reached: Progress = { total: options.users * options.events, accepted: 0, embedded: 0, depth: 0 }
      const show = (progress: Progress) => {
        reached = progress
        return terminal ? drawing(progress) : Effect.void
      }
      const running = generateLoad({
        ...options,
        url: Option.getOrElse(url, () => `http://127.0.0.1:${port}`),
        token: Option.getOrUndefined(Option.orElse(token, () => known)),
        progress: show,
      }).pipe(Effect.ensuring(terminal ? Console.error("") : Effect.void))
      const report = yield* sayingWhere(running, () => stopped(reached))
      yield* print(json, report, (report) => toText(report, limits))
      if (!report.pass) return yield* new CommandFailed({ message: "the run did not keep within the limits" })
    }).pipe(Effect.provide(Layer.provideMerge(Auditor.layer, Stack.layer))),
)
