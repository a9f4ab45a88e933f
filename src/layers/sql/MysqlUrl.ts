/**
 * The options of MYSQL_URL. The driver ignores options that it does not know, and a connection that was meant to be
 * encrypted would be in plain text. Hence an option that has no effect here is refused by its name.
 */
import { readFileSync } from "node:fs"
import { Either } from "effect"
import type { ConnectionOptions, SslOptions } from "mysql2"

export interface MysqlUrl {
  readonly connection: Pick<
    ConnectionOptions,
    "host" | "port" | "user" | "password" | "database" | "socketPath" | "enableCleartextPlugin" | "ssl"
  >
  /** Connect in plain text if the server offers no TLS. */
  readonly plaintextAllowed: boolean
}

const modes = {
  DISABLED: undefined,
  PREFERRED: { rejectUnauthorized: false },
  REQUIRED: { rejectUnauthorized: false },
  VERIFY_CA: { rejectUnauthorized: true },
  VERIFY_IDENTITY: { rejectUnauthorized: true, verifyIdentity: true },
} satisfies Record<string, SslOptions | undefined>
type Mode = keyof typeof modes
const modeNames = Object.keys(modes).join(", ")

/** The values of MySQL, MariaDB, PostgreSQL and Go for the same modes, in lower case. */
const modeOf = new Map<string, Mode>([
  ...["disabled", "disable", "false", "0", "off"].map((value) => [value, "DISABLED"] as const),
  ...["preferred", "prefer"].map((value) => [value, "PREFERRED"] as const),
  ...["required", "require", "trust", "skip-verify"].map((value) => [value, "REQUIRED"] as const),
  ["verify-ca", "VERIFY_CA"],
  ...["verify-identity", "verify-full", "true", "1", "on"].map(
    (value) => [value, "VERIFY_IDENTITY"] as const,
  ),
])

/** Options that name a mode. `ssl` may also be the JSON object of the driver. */
const modeOptions = new Set(["sslmode", "ssl", "tls"])
/** Options of JDBC: `true` asks for TLS, but does not verify the certificate. */
const requireOptions = new Set(["usessl", "requiressl"])
const files = new Map<string, "ca" | "cert" | "key">([
  ["sslca", "ca"],
  ["sslrootcert", "ca"],
  ["sslcert", "cert"],
  ["sslkey", "key"],
])
const jsonKeys = new Set([
  "rejectUnauthorized",
  "verifyIdentity",
  "ca",
  "cert",
  "key",
  "passphrase",
  "minVersion",
])

class Refused extends Error {}

const parseMode = (option: string, value: string): Mode => {
  const mode = modeOf.get(value.toLowerCase().replaceAll("_", "-"))
  if (mode === undefined) throw new Refused(`${option} must be one of ${modeNames}`)
  return mode
}

const parseBoolean = (option: string, value: string): boolean => {
  if (!/^(true|false|1|0)$/i.test(value)) throw new Refused(`${option} must be true or false`)
  return /^(true|1)$/i.test(value)
}

const readFile = (option: string, path: string): string => {
  try {
    return readFileSync(path, "utf8")
  } catch (error) {
    throw new Refused(`${option}: cannot read ${path}: ${error instanceof Error ? error.message : error}`)
  }
}

const parseJson = (option: string, text: string): SslOptions => {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw new Refused(`${option} must be true, false or a JSON object`)
  }
  if (typeof value !== "object" || value === null) throw new Refused(`${option} must be a JSON object`)
  const unknown = Object.keys(value).find((key) => !jsonKeys.has(key))
  if (unknown !== undefined) throw new Refused(`${option}: the key ${unknown} is not known`)
  return value
}

const parse = (text: string): MysqlUrl => {
  const url = new URL(text)
  let mode: Mode | undefined
  let tls: SslOptions = {}
  const other: { -readonly [Key in "socketPath" | "enableCleartextPlugin"]?: MysqlUrl["connection"][Key] } =
    {}
  for (const [option, value] of url.searchParams) {
    const name = option.toLowerCase().replace(/[-_]/g, "")
    const file = files.get(name)
    if (name === "ssl" && value.startsWith("{")) {
      mode ??= "VERIFY_CA"
      tls = { ...tls, ...parseJson(option, value) }
    } else if (modeOptions.has(name)) mode = parseMode(option, value)
    else if (requireOptions.has(name)) mode ??= parseBoolean(option, value) ? "REQUIRED" : "DISABLED"
    else if (name === "verifyservercertificate") mode = parseBoolean(option, value) ? "VERIFY_CA" : "REQUIRED"
    else if (file !== undefined) tls = { ...tls, [file]: readFile(option, value) }
    else if (name === "charset" && /^utf8mb4/i.test(value)) continue
    else if (name === "socketpath" || name === "socket") other.socketPath = value
    else if (name === "enablecleartextplugin") other.enableCleartextPlugin = parseBoolean(option, value)
    else throw new Refused(`the option ${option} is not known`)
  }
  if (mode === undefined && Object.keys(tls).length > 0) mode = "VERIFY_CA"
  if (mode === "DISABLED" && Object.keys(tls).length > 0)
    throw new Refused("certificates have no effect when TLS is disabled")
  const ssl = mode === undefined || mode === "DISABLED" ? undefined : { ...modes[mode], ...tls }
  const host = decodeURIComponent(url.hostname.replace(/^\[|\]$/g, ""))
  return {
    connection: {
      host,
      port: Number(url.port || 3306),
      user: decodeURIComponent(url.username),
      password: decodeURIComponent(url.password),
      database: decodeURIComponent(url.pathname.slice(1)),
      ...other,
      ...(ssl === undefined ? {} : { ssl }),
    },
    plaintextAllowed: mode === "PREFERRED",
  }
}

/** The problem of a URL with an option that is unknown or has a wrong value; none if all its options have an effect. */
export const parseUrl = (url: string): Either.Either<MysqlUrl, string> =>
  Either.try({
    try: () => parse(url),
    catch: (error) => {
      if (error instanceof Refused) return error.message
      throw error
    },
  })
