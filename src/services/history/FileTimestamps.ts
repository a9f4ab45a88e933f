/** Timestamps as files of histories have them. */
import { Either } from "effect"
import { canonicalTimestamp } from "../model/Interaction.ts"

export interface TimestampOptions {
  /** Zone of times without an offset, such as `Europe/Berlin`; default: UTC. */
  readonly timezone?: string
  /** The only form of the file's times, such as `dd.MM.yyyy HH:mm`. */
  readonly dateFormat?: string
}

/** Unix seconds, or with their digits milli-, micro- or nanoseconds: 2001 to 2286. Other numbers are no instants. */
const unixTime = /^(\d{10}|\d{13}|\d{16}|\d{19})(?:\.(\d+))?$/
const wallTime =
  /^(\d{4}-\d{2}-\d{2})(?:[ T](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?))?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?$/

/** A local date-time to an instant. An hour that occurs twice is the first one; an hour left out is an hour later. */
const inZone = (local: string, timezone: string): string | undefined => {
  try {
    const { epochMilliseconds } = Temporal.PlainDateTime.from(local).toZonedDateTime(timezone)
    return canonicalTimestamp(new Date(epochMilliseconds).toISOString())
  } catch {
    return undefined
  }
}
const toInstant = (local: string, offset: string | undefined, timezone: string | undefined) =>
  offset === undefined && timezone !== undefined
    ? inZone(local, timezone)
    : canonicalTimestamp(`${local}${offset === undefined || offset === "UTC" ? "Z" : offset}`)

const months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]

/** The letters of a date format and what they match, as in Java and Unicode. */
const letters: Readonly<Record<string, string>> = {
  yyyy: "(?<year>\\d{4})",
  yy: "(?<year>\\d{2})",
  MMMM: "(?<name>[a-z]{3,9})",
  MMM: "(?<name>[a-z]{3})",
  MM: "(?<month>\\d{2})",
  M: "(?<month>\\d{1,2})",
  dd: "(?<day>\\d{2})",
  d: "(?<day>\\d{1,2})",
  HH: "(?<hour>\\d{2})",
  H: "(?<hour>\\d{1,2})",
  hh: "(?<hour>0[1-9]|1[0-2])",
  h: "(?<hour>0?[1-9]|1[0-2])",
  mm: "(?<minute>\\d{2})",
  ss: "(?<second>\\d{2})",
  SSS: "(?<fraction>\\d{1,9})",
  a: "(?<half>[ap])\\.?m\\.?",
  XXX: "(?<offset>z|[+-]\\d{2}:?\\d{2})",
}

const toPattern = (format: string): Either.Either<RegExp, string> => {
  let source = ""
  for (const [part, , quoted] of format.matchAll(/([A-Za-z])\1*|'([^']*)'|./gs)) {
    const matches = letters[part]
    if (matches === undefined && /^[A-Za-z]/.test(part))
      return Either.left(`"${part}" is unknown: ${Object.keys(letters).join(", ")} and 'text' are known`)
    source += matches ?? RegExp.escape(quoted ?? part)
  }
  for (const part of ["year", "month|name", "day"])
    if (!new RegExp(`<(${part})>`).test(source)) return Either.left(`has no ${part.replace("|name", "")}`)
  try {
    return Either.right(new RegExp(`^${source}$`, "i"))
  } catch {
    return Either.left("names a part twice")
  }
}

type Parse = (text: string) => string | undefined

/** Reads times in this format; the left side says what is wrong with the format. */
export const dateFormat = (format: string, timezone?: string): Either.Either<Parse, string> =>
  Either.map(toPattern(format), (pattern) => (text) => {
    const parts = pattern.exec(text.trim())?.groups
    if (parts === undefined) return undefined
    const {
      day = "",
      fraction = "0",
      half,
      hour = "0",
      minute = "00",
      name = "",
      offset,
      second = "00",
    } = parts
    const year = parts.year!.length === 2 ? `20${parts.year}` : parts.year
    const month = parts.month ?? months.indexOf(name.slice(0, 3).toLowerCase()) + 1
    const hours = half === undefined ? hour : (Number(hour) % 12) + (half.toLowerCase() === "p" ? 12 : 0)
    const two = (part: string | number) => String(part).padStart(2, "0")
    const local = `${year}-${two(month)}-${two(day)}T${two(hours)}:${minute}:${second}.${fraction}`
    return toInstant(local, offset?.toUpperCase(), timezone)
  })

/** ISO 8601, `2020-01-31 12:34:56`, a day, or Unix time. */
const parseCommon =
  (timezone: string | undefined): Parse =>
  (text) => {
    const unix = unixTime.exec(text)
    if (unix !== null)
      return canonicalTimestamp(
        new Date(Number(`${unix[1]}${(unix[2] ?? "").padEnd(3, "0")}`.slice(0, 13))).toISOString(),
      )
    const canonical = canonicalTimestamp(text)
    if (canonical !== undefined) return canonical
    const match = wallTime.exec(text.trim())
    if (match === null) return undefined
    const [, day, time = "00:00:00", zone] = match
    return toInstant(`${day}T${time}`, zone, timezone)
  }

const problemOf = (text: string, format: string | undefined) => {
  if (format !== undefined) return `must be a time like ${format}`
  if (/^[2-7]\d{4}(\.\d+)?$/.test(text))
    return "is a serial date of a spreadsheet: format the column as yyyy-mm-dd hh:mm:ss and export it again"
  return "must be an ISO 8601 date-time, 2026-01-31 12:34:56, a day, or Unix time in s, ms, µs or ns (10, 13, 16 or 19 digits); --date-format reads other forms"
}

/** Converts times of a file to canonical timestamps; the left side says why a value is none. */
export const timestampReader = ({ dateFormat: format, timezone }: TimestampOptions) => {
  const parse =
    format === undefined
      ? parseCommon(timezone)
      : Either.getOrElse(dateFormat(format, timezone), () => () => undefined)
  return (value: unknown): Either.Either<string, string> => {
    const text = typeof value === "string" || typeof value === "number" ? String(value) : ""
    return Either.fromNullable(parse(text), () => problemOf(text, format))
  }
}
