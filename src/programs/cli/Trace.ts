/** `trace`: shows the traces of a message as trees. */
import { Args } from "@effect/cli"
import { Effect, Schema } from "effect"
import { readTraces, type Span, type Trace } from "../tasks/ReadTrace.ts"
import { json, print, table } from "./support/Output.ts"
import { waiting } from "./support/Progress.ts"
import { command } from "./support/Usage.ts"

/** Aligns the numbers of a column on the right. */
const rightAligned = (heading: string, numbers: ReadonlyArray<string>) => {
  const width = Math.max(heading.length, ...numbers.map((text) => text.length))
  return [heading, ...numbers].map((text) => text.padStart(width))
}

/** A span whose parent is not in the trace, for example a client's span, is a root. */
const inTree = ({ duration_ms, spans, trace_id }: Trace): string => {
  const known = new Set(spans.map(({ span_id }) => span_id))
  const children = Map.groupBy(spans, ({ parent_id }) =>
    parent_id !== null && known.has(parent_id) ? parent_id : null,
  )
  const shown: Array<readonly [string, Span]> = []
  const draw = (span: Span, before: string, branch: string) => {
    shown.push([`${before}${branch}${span.name}`, span])
    const own = children.get(span.span_id) ?? []
    const below = before + (branch === "" ? "" : branch === "├─ " ? "│  " : "   ")
    for (const [index, child] of own.entries()) draw(child, below, index === own.length - 1 ? "└─ " : "├─ ")
  }
  for (const root of children.get(null) ?? []) draw(root, "", "")
  const [start = "", ...starts] = rightAligned(
    "START ms",
    shown.map(([, { start_ms }]) => `+${start_ms.toFixed(1)}`),
  )
  const [took = "", ...durations] = rightAligned(
    "TOOK ms",
    shown.map(([, { duration_ms }]) => duration_ms.toFixed(1)),
  )
  const notes = ({ attributes, error }: Span) => {
    const attempt = Number(attributes["user_embeddings.attempt"] ?? 1)
    return [...(attempt > 1 ? [`attempt ${attempt}`] : []), ...(error === null ? [] : [`failed: ${error}`])]
  }
  return [
    `trace ${trace_id}: ${spans.length} spans, ${duration_ms.toFixed(1)} ms`,
    table(
      ["SPAN", "SERVICE", "KIND", start, took, ""],
      shown.map(([name, span], index) =>
        [name, span.service, span.kind].concat(
          starts[index] ?? "",
          durations[index] ?? "",
          notes(span).join(", "),
        ),
      ),
    ),
  ].join("\n")
}

const Id = Schema.Lowercase.pipe(
  Schema.compose(
    Schema.String.pipe(
      Schema.filter(
        (id) =>
          /^([0-9a-f]{32}|[0-9a-f]{64})$/.test(id) ||
          "must be a message id (64 hex digits) or a trace id (32 hex digits)",
      ),
    ),
  ),
)

export const trace = command(
  "trace",
  "Shows the traces of a message as trees, from Jaeger (JAEGER_URL): each step, its start and its duration. Retries, sweeps and replays of a message are in its trace",
  {
    id: Args.text({ name: "id" }).pipe(
      Args.withSchema(Id),
      Args.withDescription("Message id as the API answers it, or trace id, the second part of a traceparent"),
    ),
    json,
  },
  ({ id, json }) =>
    readTraces(id).pipe(
      waiting("asking Jaeger"),
      Effect.flatMap((traces) => print(json, traces, (traces) => traces.map(inTree).join("\n\n"))),
    ),
)
