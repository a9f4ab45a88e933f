/** The content of log lines. */
import { describe, expect, test } from "bun:test"
import { createHash } from "node:crypto"
import { Cause, Effect, Layer, Tracer } from "effect"
import * as Logging from "../../../src/layers/telemetry/Logging.ts"
import { variables } from "../../support/stacks.ts"

/** The lines that a program writes to stderr. */
const linesOf = async (
  program: Effect.Effect<void>,
  settings: Readonly<Record<string, string>> = {},
): Promise<ReadonlyArray<string>> => {
  const lines: Array<string> = []
  const { error } = console
  console.error = (line: unknown) => void lines.push(String(line))
  try {
    await Effect.runPromise(
      Effect.provide(
        program,
        Layer.provide(
          Logging.layerConfig(false),
          variables({ LOG_FORMAT: "json", LOG_LEVEL: "info", ...settings }),
        ),
      ),
    )
  } finally {
    console.error = error
  }
  return lines
}
const traceId = "0af7651916cd43dd8448eb211c80319c"
const spanId = "b7ad6b7169203331"
const parent = Tracer.externalSpan({ traceId, spanId, sampled: true })

describe("a log line", () => {
  test("is one JSON object with time, level, event, annotations and trace", async () => {
    const [line = "", ...others] = await linesOf(
      Effect.logWarning("message.retried").pipe(
        Effect.annotateLogs({ message_id: "m", attempt: 2, error: "two\nlines" }),
        Effect.withParentSpan(parent),
      ),
    )
    expect(others).toEqual([])
    expect(line).not.toContain("\n")
    const { time, ...rest } = JSON.parse(line)
    expect(time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    expect(rest).toEqual({
      level: "warn",
      event: "message.retried",
      message_id: "m",
      attempt: 2,
      error: "two\nlines",
      trace_id: traceId,
      span_id: spanId,
    })
  })

  test("names levels like LOG_LEVEL; lines below that level are not written", async () => {
    const all = Effect.all([
      Effect.logDebug("a"),
      Effect.logInfo("b"),
      Effect.logWarning("c"),
      Effect.logError("d"),
    ])
    const levels = async (LOG_LEVEL: string) =>
      (await linesOf(all.pipe(Effect.asVoid), { LOG_LEVEL })).map((line) => JSON.parse(line).level)
    expect(await levels("debug")).toEqual(["debug", "info", "warn", "error"])
    expect(await levels("warn")).toEqual(["warn", "error"])
  })

  test("has a hash instead of the user id, as documented in docs/logs.md", async () => {
    const [line = ""] = await linesOf(Effect.annotateLogs(Effect.logInfo("a"), { user_id: "u-42" }))
    expect(line).not.toContain("u-42")
    expect(JSON.parse(line).user).toBe(createHash("sha256").update("u-42").digest("hex").slice(0, 16))
  })

  test("never has the password of a URL", async () => {
    const dsn = "amqp://shop:hunter2@rabbit.example:5672/vhost"
    const program = Effect.logError("a", Cause.fail(new Error(`can't reach ${dsn}`))).pipe(
      Effect.annotateLogs({
        detail: `tried ${dsn} and mongodb+srv://u:p%40ss@db.example`,
        url: "http://a:80/b",
      }),
    )
    for (const LOG_FORMAT of ["json", "pretty"]) {
      const text = (await linesOf(program, { LOG_FORMAT })).join("\n")
      expect(text).toContain("amqp://shop:***@rabbit.example:5672/vhost")
      expect(text).toContain("http://a:80/b")
      expect(text).not.toContain("hunter2")
      expect(text).not.toContain("p%40ss")
    }
  })

  test("in the format pretty has time, level, event and fields, without trace", async () => {
    const [line = ""] = await linesOf(
      Effect.logInfo("batch.processed").pipe(
        Effect.annotateLogs({ count: 3 }),
        Effect.withParentSpan(parent),
      ),
      { LOG_FORMAT: "pretty" },
    )
    expect(line).toMatch(/^\d\d:\d\d:\d\d INFO {2}batch\.processed count=3$/)
  })
})
