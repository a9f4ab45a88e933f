/** Text of a command's error: one line says what is wrong, the next what to do about it. */
import { ConfigError, Predicate } from "effect"
import { UserNotFound } from "../../../services/operate/ShowUser.ts"
import { BadUsage } from "./Usage.ts"

const byReason: Readonly<Record<string, string>> = {
  unavailable: "user-embeddings doctor shows which server can't be reached, and why",
  timeout: "user-embeddings doctor shows which server does not answer; it is safe to try again",
  not_set_up: "user-embeddings setup creates what is missing",
  rejected: "user-embeddings doctor checks permissions and declarations on the servers",
}

const byTag: Readonly<Record<string, string>> = {
  DeadLetterNotFound: "user-embeddings failed list shows the dead letters and their ids",
  ProductNotFound: "user-embeddings products import FILE stores products",
  ImportStopped: "correct the line, or import the other lines without --strict",
  ImportRefused: "user-embeddings import interactions --help explains the format and the options",
  NotRebuilt:
    "import the missing products or configure the missing event types, or rebuild without them with --allow-missing",
  NotAccepted: "user-embeddings up starts the API; --url gives the address of another one",
  Inconsistent: "user-embeddings audit --details lists them; docs/operations.md explains the states",
  PhraseEmbedderError: "user-embeddings doctor checks the embedding service; then run the same command again",
  ServeError: "free the port, or set another one with API_PORT",
  JaegerUnreachable: "start Jaeger, or correct JAEGER_URL",
  NotRetried: "user-embeddings doctor shows the cause; then run the same command again",
}

/** `undefined` when the error's own text says what to do. */
const nextStep = (error: unknown, command: ReadonlyArray<string>): string | undefined => {
  if (error instanceof BadUsage) return [...["user-embeddings", ...command], "--help"].join(" ")
  if (ConfigError.isConfigError(error))
    return ".env.example explains every variable; user-embeddings config shows the present values"
  if (!Predicate.isRecord(error)) return undefined
  if (Predicate.isString(error.remedy)) return error.remedy
  if (error instanceof UserNotFound)
    return error.known
      ? "user-embeddings audit --user U shows which events are not applied yet"
      : "check the id; the first event of a user creates the embedding"
  if (error._tag === "SystemError")
    return error.reason === "NotFound" ? "check the path" : "check the permissions of the file"
  return byTag[String(error._tag)] ?? (Predicate.isString(error.reason) ? byReason[error.reason] : undefined)
}

/** The message of an error, or of its cause when the error has none. */
const messageOf = (error: unknown): string => {
  const hasMessage = error instanceof Error || ConfigError.isConfigError(error)
  if (!hasMessage) return String(error)
  return error.message !== "" || !("cause" in error) ? error.message : messageOf(error.cause)
}

/** The object that `--json` puts on the last line of stderr. */
export const errorJson = (error: {
  readonly type: string
  readonly message: string
  readonly reason?: string
  readonly next_step?: string
}): string => JSON.stringify({ error })

const typeOf = (error: unknown): string =>
  ConfigError.isConfigError(error) ? "ConfigError" : Predicate.isRecord(error) ? String(error._tag) : "Error"

/** Lines for stderr. `command`: for example `["failed", "list"]`. */
export const renderError = (error: unknown, command: ReadonlyArray<string>, asJson: boolean): string => {
  const step = nextStep(error, command)
  const message = messageOf(error)
  if (!asJson)
    return [`user-embeddings: ${message}`, ...(step === undefined ? [] : [`  → ${step}`])].join("\n")
  return errorJson({
    type: typeOf(error),
    ...(Predicate.isRecord(error) && Predicate.isString(error.reason) && { reason: error.reason }),
    message,
    ...(step !== undefined && { next_step: step }),
  })
}
