/** Logs on stderr: one JSON object a line, or a line for people on a terminal. */
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
import * as Settings from "../services/Settings.ts"

const levels = {
  debug: LogLevel.Debug,
  info: LogLevel.Info,
  warn: LogLevel.Warning,
  error: LogLevel.Error,
} as const

const fields = ({ annotations, cause, context, message }: Logger.Logger.Options<unknown>) => {
  const [event, ...details] = Array.isArray(message) ? message : [message]
  const span = Option.flatMap(
    FiberRefs.get(context, FiberRef.currentContext),
    Context.getOption(Tracer.ParentSpan),
  )
  return {
    event: String(event),
    ...Object.fromEntries(HashMap.toEntries(annotations)),
    ...(details.length > 0 ? { details } : {}),
    ...(Option.isSome(span) ? { trace_id: span.value.traceId, span_id: span.value.spanId } : {}),
    ...(Cause.isEmpty(cause) ? {} : { cause: Cause.pretty(cause) }),
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
  const {
    trace_id: _,
    span_id: __,
    cause,
    ...shown
  } = { trace_id: "", span_id: "", cause: undefined, ...rest }
  const details = Object.entries(shown).map(
    ([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  )
  const line = [
    options.date.toISOString().slice(11, 19),
    options.logLevel.label.padEnd(5),
    event,
    ...details,
  ].join(" ")
  return cause === undefined ? line : `${line}\n${cause}`
})

/** LOG_LEVEL, else what is usual: `info` for programs that run on, `warn` for commands that answer and end. */
export const level = (usual: keyof typeof levels) =>
  Effect.map(Settings.LOG_LEVEL, (given) => levels[Option.getOrElse(given, () => usual)])

/** Level of commands; form by LOG_FORMAT, or by whether `terminal` says that a person reads. */
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
