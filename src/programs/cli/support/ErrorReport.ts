/** What a command that fails tells: what is wrong in one line, and what to do next in another. */
import { ValidationError } from "@effect/cli"
import { ConfigError, Predicate } from "effect"
import { BadUsage } from "./Usage.ts"

/** By reason of a port's error. */
const byReason: Readonly<Record<string, string>> = {
  unavailable: "user-embeddings doctor says what can't be reached, and why",
  timeout: "user-embeddings doctor says what does not answer; to try again does no harm",
  not_set_up: "user-embeddings setup creates what is missing",
  rejected: "user-embeddings doctor looks at rights and at what was declared differently",
}

/** By tag of an error. */
const byTag: Readonly<Record<string, string>> = {
  UserNotFound:
    "an embedding comes with the first interaction: user-embeddings audit --user U says what waits",
  DeadLetterNotFound: "user-embeddings failed list shows those that there are",
  ProductNotFound: "user-embeddings products import FILE brings products in",
  ImportStopped: "correct the line, or leave --strict out: then all others are imported",
  ImportRefused: "user-embeddings import interactions --help says how a file is read",
  NotRebuilt:
    "import the products that are missing, or go on without them by --allow-missing; the others are rebuilt",
  NotAccepted: "is the API running there? user-embeddings up, or name another one by --url",
  Inconsistent: "user-embeddings audit --details names them; docs/operations.md says what each word means",
  ServeError: "free the port, or choose another one by API_PORT",
  NotRetried: "user-embeddings doctor; then the same command again",
}

/** What to do next; `undefined` when the error says it itself. */
const nextStep = (error: unknown, command: ReadonlyArray<string>): string | undefined => {
  if (ValidationError.isValidationError(error) || error instanceof BadUsage)
    return [...["user-embeddings", ...command], "--help"].join(" ")
  if (ConfigError.isConfigError(error))
    return ".env.example names every variable with an example; user-embeddings config shows what is set"
  if (!Predicate.isRecord(error)) return undefined
  if (Predicate.isString(error.remedy)) return error.remedy
  if (error._tag === "SystemError")
    return error.reason === "NotFound" ? "is the path right?" : "may this user read and write there?"
  return byTag[String(error._tag)] ?? (Predicate.isString(error.reason) ? byReason[error.reason] : undefined)
}

/** Errors without words of their own have them in their cause. */
const messageOf = (error: unknown): string => {
  const isWorded = error instanceof Error || ConfigError.isConfigError(error)
  if (!isWorded) return String(error)
  return error.message !== "" || !("cause" in error) ? error.message : messageOf(error.cause)
}

/** Lines for stderr. What the command line lacks has been told by its parser. `command`: as in `["failed", "list"]`. */
export const renderError = (error: unknown, command: ReadonlyArray<string>): string => {
  const step = nextStep(error, command)
  return [
    ...(ValidationError.isValidationError(error) ? [] : [`user-embeddings: ${messageOf(error)}`]),
    ...(step === undefined ? [] : [`  → ${step}`]),
  ].join("\n")
}
