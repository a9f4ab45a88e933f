/** Times of files: ISO 8601, Unix time in four units, local times, and forms of a shop's own. */
import { describe, expect, test } from "bun:test"
import { Either } from "effect"
import fc from "fast-check"
import {
  dateFormat,
  type TimestampOptions,
  timestampReader,
} from "../../../src/services/history/FileTimestamps.ts"

const read = (value: unknown, options: TimestampOptions = {}) => Either.merge(timestampReader(options)(value))
const instant = "2020-01-31T12:34:56.789Z"

test.each<[string | number]>([
  ["1580474096.789"],
  ["1580474096789"],
  ["1580474096789123"],
  ["1580474096789123456"],
  [1580474096.789],
  [1580474096789],
  [1580474096789123],
  [Number(1580474096789123456n)],
])("%p is Unix time in s, ms, µs or ns", (value) => {
  expect(read(value)).toBe(instant)
})

test("numbers and text that are no instants are refused, alike", () => {
  for (const value of [20260102, 158047409, 15804740961, 0, -1580474096, 1e300, Number.NaN, 20260102123456])
    for (const given of [value, String(value)])
      expect(read(given)).toStartWith("must be an ISO 8601 date-time, ")
  for (const given of [45992, 45992.524, "45992.5"])
    expect(read(given)).toStartWith("is a serial date of a spreadsheet")
  for (const given of [true, {}, [1580474096], "", "31.01.2026", "2021-02-29"])
    expect(read(given)).toStartWith("must be an ISO 8601 date-time, ")
})

describe("time zones", () => {
  test.each([
    ["2026-07-01 12:00", "2026-07-01T10:00:00.000Z"],
    ["2026-01-01 12:00:00.5", "2026-01-01T11:00:00.500Z"],
    ["2026-07-01", "2026-06-30T22:00:00.000Z"],
    ["2026-07-01T12:00:00Z", "2026-07-01T12:00:00.000Z"],
    ["2026-07-01T12:00:00-05:00", "2026-07-01T17:00:00.000Z"],
    ["1580474096.789", instant],
    ["2026-03-29 02:30", "2026-03-29T01:30:00.000Z"],
    ["2026-10-25 02:30", "2026-10-25T00:30:00.000Z"],
  ])("%p in Europe/Berlin", (text, expected) => {
    expect(read(text, { timezone: "Europe/Berlin" })).toBe(expected)
  })
  test("a day that does not exist is refused", () => {
    expect(read("2026-02-30 12:00", { timezone: "Europe/Berlin" })).toStartWith("must be")
  })
})

describe("forms", () => {
  test.each<[string, string | number, string]>([
    ["dd.MM.yyyy HH:mm:ss", "31.01.2026 12:34:56", "2026-01-31T12:34:56.000Z"],
    ["M/d/yy h:mm a", "1/31/26 12:05 AM", "2026-01-31T00:05:00.000Z"],
    ["M/d/yy h:mm a", "1/31/26 1:05 p.m.", "2026-01-31T13:05:00.000Z"],
    ["dd/MMM/yyyy:HH:mm:ss XXX", "10/Oct/2025:13:55:36 +0200", "2025-10-10T11:55:36.000Z"],
    ["MMMM d, yyyy", "January 31, 2026", "2026-01-31T00:00:00.000Z"],
    ["yyyyMMdd", 20260131, "2026-01-31T00:00:00.000Z"],
    ["yyyy-MM-dd'T'HH.mm.ss.SSS", "2026-01-31T12.34.56.789123", "2026-01-31T12:34:56.789Z"],
  ])("%s reads %p", (form, text, expected) => {
    expect(read(text, { dateFormat: form })).toBe(expected)
  })
  test("what has another form, or names no day, is refused", () => {
    for (const text of ["31.02.2026", "2026-01-31", "31.01.26", "31.13.2026", 20260131])
      expect(read(text, { dateFormat: "dd.MM.yyyy" })).toBe("must be a time like dd.MM.yyyy")
  })
  test.each([
    ["dd.MM", "has no year"],
    ["yyyy-MM", "has no day"],
    ["yyyy", "has no month"],
    ["yyyy-MM-dd qq", '"qq" is unknown'],
    ["yyyy-MM-dd yyyy", "names a part twice"],
  ])("%s is no form: %s", (form, problem) => {
    expect(Either.getOrThrow(Either.flip(dateFormat(form)))).toStartWith(problem)
  })

  test("a time written in a zone is read back, whatever the zone and the form", () => {
    const zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]
    fc.assert(
      fc.property(
        fc.date({ min: new Date("1990-01-01"), max: new Date("2030-01-01"), noInvalidDate: true }),
        fc.constantFrom(...zones),
        (date, timezone) => {
          const local = Temporal.Instant.fromEpochMilliseconds(date.getTime()).toZonedDateTimeISO(timezone)
          const two = (n: number) => String(n).padStart(2, "0")
          const text = `${two(local.day)}.${two(local.month)}.${local.year} ${two(local.hour)}:${two(local.minute)}:${two(local.second)},${String(local.millisecond).padStart(3, "0")}`
          const back = Date.parse(read(text, { dateFormat: "dd.MM.yyyy HH:mm:ss,SSS", timezone }))
          // An hour that occurs twice is the first one.
          expect([0, 1_800_000, 3_600_000]).toContain(date.getTime() - back)
          expect(read(`${local.toPlainDateTime()}`.replace("T", " "), { timezone })).toBe(
            new Date(back).toISOString(),
          )
        },
      ),
    )
  })
})
