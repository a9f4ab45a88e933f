/** Logs to stderr: one JSON object a line, or a short line on a terminal. docs/logs.md lists every event. */
import { createHash } from "node:crypto"
import {
  Cause,
  Context,
  Effect,
  FiberRef,
  FiberRefs,
  HashMap,
  Layer,
  Logger,
  LogLevel,
  Option,
  Tracer,
} from "effect"
import * as Settings from "../../services/Settings.ts"

const levels = {
  debug: LogLevel.Debug,
  info: LogLevel.Info,
  warn: LogLevel.Warning,
  error: LogLevel.Error,
} as const

/** The user id in logs: a hash, the same in every line. */
export const hashed = (userId: string): string =>
  createHash("sha256").update(userId).digest("hex").slice(0, 16)

/** The password of a URL, because drivers quote URLs in their errors. */
const password = /(\b[a-z][a-z0-9+.-]*:\/\/[^\s:/?#@]*):[^\s/?#]*@/gi
const withoutPassword = (value: unknown): unknown =>
  typeof value === "string" && value.includes("://") ? value.replace(password, "$1:***@") : value

const fields = ({ annotations, cause, context, message }: Logger.Logger.Options<unknown>) => {
  const [event, ...details] = Array.isArray(message) ? message : [message]
  const span = Option.flatMap(
    FiberRefs.get(context, FiberRef.currentContext),
    Context.getOption(Tracer.ParentSpan),
  )
  const given = HashMap.toEntries(annotations).map(([key, value]) =>
    key === "user_id" ? ["user", hashed(String(value))] : [key, withoutPassword(value)],
  )
  return {
    event: String(event),
    ...Object.fromEntries(given),
    ...(details.length > 0 ? { details } : {}),
    ...(Option.isSome(span) ? { trace_id: span.value.traceId, span_id: span.value.spanId } : {}),
    ...(Cause.isEmpty(cause) ? {} : { cause: withoutPassword(Cause.pretty(cause)) }),
  }
}

const json = Logger.make<unknown, string>((options) =>
  JSON.stringify({
    time: options.date.toISOString(),
    level: options.logLevel.label.toLowerCase(),
    ...fields(options),
  }),
)

const pretty = Logger.make<unknown, string>((options) => {
  const { event, ...rest } = fields(options)
  const { trace_id: _, span_id: __, cause, ...shown }: Readonly<Record<string, unknown>> = rest
  const details = Object.entries(shown).map(
    ([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  )
  const time = options.date.toISOString().slice(11, 19)
  const line = [time, options.logLevel.label.padEnd(5), event, ...details].join(" ")
  return cause === undefined ? line : `${line}\n${cause}`
})

/** LOG_LEVEL, else the given default: `info` for servers, `warn` for commands. */
export const level = (defaultLevel: keyof typeof levels) =>
  Effect.map(Settings.LOG_LEVEL, (given) => levels[Option.getOrElse(given, () => defaultLevel)])

/** The level of commands. The default of LOG_FORMAT depends on whether stderr is a `terminal`. */
export const layerConfig = (terminal: boolean) =>
  Layer.unwrapEffect(
    Effect.gen(function* () {
      const format = Option.getOrElse(yield* Settings.LOG_FORMAT, () => (terminal ? "pretty" : "json"))
      const logger = Logger.withConsoleError(format === "pretty" ? pretty : json)
      return Layer.merge(
        Logger.replace(Logger.defaultLogger, logger),
        Logger.minimumLogLevel(yield* level("warn")),
      )
    }),
  )
