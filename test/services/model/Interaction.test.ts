/** The model: which input is accepted, what it becomes, and how each error reads. */
import { describe, expect, test } from "bun:test"
import { Either, Schema } from "effect"
import fc from "fast-check"
import { defaults } from "../../../src/services/model/EventTypes.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"

const told = <A, I>(schema: Schema.Schema<A, I>) => {
  const decode = Schema.decodeUnknownEither(schema, { errors: "all" })
  /** The decoded value, or the refusal in words. */
  return (value: unknown): A | string =>
    Either.merge(Either.mapLeft(decode(value), (error) => `refused: ${Interaction.describeIssues(error)}`))
}

const search = Interaction.make({
  user_id: "u-42",
  event_type: "search",
  search_phrase: "wireless headphones",
  occurred_at: "2026-02-10T12:34:56.789Z",
  metadata: { device: "phone", page: 2, first: true },
})
const click = Interaction.make({
  user_id: "u-42",
  event_type: "product_click",
  product_id: "p-7",
  occurred_at: "2026-02-10T12:34:56.789Z",
  metadata: {},
})

describe("message ids", () => {
  test("are the SHA-256 of user|type|reference|instant, as in the specification's vector", () => {
    expect(search.message_id).toBe("0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4")
    expect(click.message_id).toBe(
      new Bun.CryptoHasher("sha256").update("u-42|product_click|p-7|2026-02-10T12:34:56.789Z").digest("hex"),
    )
  })

  test("hash non-ASCII phrases as UTF-8", () => {
    const phrase = "kopfhörer 🎧"
    const { message_id } = Interaction.make({
      ...search,
      event_type: "search",
      search_phrase: phrase,
      product_id: null,
    })
    const bytes = new TextEncoder().encode(`u-42|search|${phrase}|2026-02-10T12:34:56.789Z`)
    expect(message_id).toBe(new Bun.CryptoHasher("sha256").update(bytes).digest("hex"))
  })

  test("change with each of the four parts and with nothing else", () => {
    const facts = { user_id: "u", occurred_at: "2026-01-01T00:00:00.000Z", metadata: {} }
    const view = { ...facts, event_type: "product_view", product_id: "p" } as const
    const ids = [
      view,
      { ...view, user_id: "v" },
      { ...view, event_type: "product_click" } as const,
      { ...view, product_id: "q" },
      { ...view, occurred_at: "2026-01-01T00:00:00.001Z" },
      { ...facts, event_type: "search", search_phrase: "p" } as const,
    ].map((parts) => Interaction.make(parts).message_id)
    expect(new Set(ids).size).toBe(ids.length)
    expect(Interaction.make({ ...view, metadata: { device: "phone" } }).message_id).toBe(ids[0] ?? "")
  })
})

describe("identifiers", () => {
  for (const [name, schema] of [
    ["user", Interaction.UserId],
    ["product", Interaction.ProductId],
  ] as const) {
    const decode = told(schema)

    test(`of a ${name} are 1 to 64 characters of the charset, kept as they are`, () => {
      for (const id of ["a", "Z", "0", "a.b_c:d-e", "0042", "__proto__", "x".repeat(64), "-", ":"])
        expect(decode(id)).toBe(id)
    })

    test(`of a ${name} may be integers, which become decimal strings`, () => {
      const table = [
        [0, "0"],
        [-0, "0"],
        [42, "42"],
        [-7, "-7"],
        [1e3, "1000"],
        [Number.MAX_SAFE_INTEGER, "9007199254740991"],
      ] as const
      for (const [given, id] of table) expect(decode(given)).toBe(id)
    })

    test(`of a ${name} are refused otherwise, with the rule`, () => {
      const rule =
        "refused: must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and neither . nor .. (an integer is accepted too)"
      const bad = [
        "",
        "x".repeat(65),
        "a b",
        "a|b",
        "a/b",
        "ü",
        "a\n",
        "\u0000",
        "٤",
        "$a",
        "a\ud800",
        ".",
        "..",
      ]
      const fractions = [1.5, 2 ** 53, 1e21, Number.NaN, Number.POSITIVE_INFINITY]
      const others = [true, null, undefined, {}, ["a"], 1n]
      for (const given of [...bad, ...fractions, ...others]) expect(decode(given)).toBe(rule)
    })
  }
})

describe("search phrases", () => {
  const decode = told(Interaction.SearchPhrase)

  test("are trimmed and composed (NFC)", () => {
    const table = [
      ["  shoes\t\r\n", "shoes"],
      ["\u00a0\u2003shoes\ufeff", "shoes"],
      ["cafe\u0301", "caf\u00e9"],
      ["\u212b", "\u00c5"],
      ["red  shoes", "red  shoes"],
      ["Ⅷ", "Ⅷ"],
      ["zero\u200bwidth", "zero\u200bwidth"],
      ["👩‍👩‍👧", "👩‍👩‍👧"],
    ] as const
    for (const [given, phrase] of table) expect(decode(given)).toBe(phrase)
  })

  test("are measured in code points, after trimming and composing", () => {
    for (const phrase of ["a", "x".repeat(255), "🎧".repeat(255)]) expect(decode(phrase)).toBe(phrase)
    expect(decode(` ${"x".repeat(255)} `)).toBe("x".repeat(255))
    expect(decode("e\u0301".repeat(255))).toBe("é".repeat(255))
    const refused = (length: number) => `refused: must be 1 to 255 characters, has ${length}`
    expect(decode("x".repeat(256))).toBe(refused(256))
    expect(decode("🎧".repeat(256))).toBe(refused(256))
    for (const empty of ["", "   ", "\n\t"]) expect(decode(empty)).toBe(refused(0))
  })

  test("hold no control characters", () => {
    for (const control of ["\u0000", "\t", "\n", "\u001b", "\u007f", "\u0085", "\u009f"])
      expect(decode(`a${control}b`)).toBe("refused: must not contain control characters")
  })

  test("hold no lone surrogates", () => {
    for (const lone of ["\ud83c", "\udfa7", "\udfa7\ud83c", "\ud800\ud800"])
      expect(decode(`a${lone}b`)).toBe("refused: must not contain lone surrogates")
  })

  test("are text", () => {
    for (const given of [5, null, ["a"], {}]) expect(decode(given)).toBe("refused: must be a string")
  })

  test("once decoded decode to themselves: the hash of a message is stable", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 300 }), (text) => {
        const phrase = decode(text)
        fc.pre(!phrase.startsWith("refused: "))
        expect(decode(phrase)).toBe(phrase)
        expect(phrase).toBe(phrase.normalize("NFC").trim())
      }),
    )
  })
})

describe("timestamps", () => {
  const canonical = Interaction.canonicalTimestamp

  test("become UTC with milliseconds: offsets are converted, finer digits cut, missing ones filled", () => {
    const table = [
      ["2026-02-10T12:34:56.789Z", "2026-02-10T12:34:56.789Z"],
      ["2026-02-10T12:34:56Z", "2026-02-10T12:34:56.000Z"],
      ["2026-02-10T12:34Z", "2026-02-10T12:34:00.000Z"],
      ["2026-02-10T12:34:56.7Z", "2026-02-10T12:34:56.700Z"],
      ["2026-02-10T12:34:56,78Z", "2026-02-10T12:34:56.780Z"],
      ["2026-02-10T12:34:56.789999999Z", "2026-02-10T12:34:56.789Z"],
      ["2026-12-31T23:59:59.9999Z", "2026-12-31T23:59:59.999Z"],
      ["2026-02-10T12:34:56.0009Z", "2026-02-10T12:34:56.000Z"],
      [`2026-02-10T12:34:56.123${"9".repeat(1000)}Z`, "2026-02-10T12:34:56.123Z"],
      ["2026-02-10T13:34:56.789+01:00", "2026-02-10T12:34:56.789Z"],
      ["2026-02-10T13:34:56.789+0100", "2026-02-10T12:34:56.789Z"],
      ["2026-02-10T00:04:56.789-12:30", "2026-02-10T12:34:56.789Z"],
      ["2026-02-10T12:34:56.789-00:00", "2026-02-10T12:34:56.789Z"],
      ["2026-01-01T00:30:00+05:45", "2025-12-31T18:45:00.000Z"],
      ["2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000Z"],
      ["2000-02-29T12:00:00Z", "2000-02-29T12:00:00.000Z"],
      ["2024-02-29T23:30:00-01:00", "2024-03-01T00:30:00.000Z"],
    ] as const
    for (const [given, instant] of table) expect([given, canonical(given)]).toEqual([given, instant])
  })

  test("lie in the years 1970 to 9999, in UTC", () => {
    expect(canonical("1970-01-01T00:00:00.000Z")).toBe("1970-01-01T00:00:00.000Z")
    expect(canonical("1969-12-31T23:30:00-01:00")).toBe("1970-01-01T00:30:00.000Z")
    expect(canonical("9999-12-31T23:59:59.999Z")).toBe("9999-12-31T23:59:59.999Z")
    const outside = [
      "1969-12-31T23:59:59.999Z",
      "1970-01-01T00:00:00+00:01",
      "9999-12-31T23:59:59.999-00:01",
      "0000-01-01T00:00:00Z",
      "0070-01-01T00:00:00Z",
      "10000-01-01T00:00:00Z",
      "+010000-01-01T00:00:00Z",
      "-001970-01-01T00:00:00Z",
    ]
    for (const given of outside) expect([given, canonical(given)]).toEqual([given, undefined])
  })

  test("are refused where a date or time does not exist, or the form is another", () => {
    const bad = [
      "2026-02-29T00:00:00Z",
      "2026-02-30T00:00:00.000Z",
      "2100-02-29T00:00:00Z",
      "2026-04-31T00:00:00Z",
      "2026-13-01T00:00:00Z",
      "2026-00-01T00:00:00Z",
      "2026-01-00T00:00:00Z",
      "2026-01-32T00:00:00.000Z",
      "2026-01-01T24:00:00Z",
      "2026-01-01T24:00:00.000Z",
      "2026-01-01T23:60:00Z",
      "2026-12-31T23:59:60Z",
      "2026-01-01T00:00:00+24:00",
      "2026-01-01T00:00:00+01:60",
      "2026-01-01T00:00:00",
      "2026-01-01T00:00:00.000",
      "2026-01-01",
      "2026-01-01Z",
      "2026-01-01 00:00:00Z",
      "2026-01-01t00:00:00Z",
      "2026-01-01T00:00:00z",
      "2026-01-01T00:00:00.Z",
      "2026-01-01T00:00.5Z",
      "2026-01-01T00Z",
      "2026-1-1T00:00:00Z",
      "20260101T000000Z",
      " 2026-01-01T00:00:00Z",
      "2026-01-01T00:00:00Z\n",
      "2026-01-01T00:00:00ZZ",
      "2026-01-01T00:00:00 +01:00",
      "2026-01-01T00:00:00 GMT",
      "Thu, 01 Jan 2026 00:00:00 GMT",
      "1767225600000",
      "٢٠٢٦-01-01T00:00:00Z",
      "",
      "now",
    ]
    for (const given of bad) expect([given, canonical(given)]).toEqual([given, undefined])
    expect(told(Interaction.Timestamp)("now")).toBe(
      "refused: must be an ISO 8601 date-time with offset, as 2026-02-10T12:34:56.789Z",
    )
    expect(told(Interaction.Timestamp)(1_767_225_600_000)).toBe("refused: must be a string")
  })

  test("of one instant in any offset and with any finer digits are the same text", () => {
    const two = (n: number) => String(n).padStart(2, "0")
    fc.assert(
      fc.property(
        fc.integer({ min: 86_400_000, max: 253_402_300_799_999 - 86_400_000 }),
        fc.integer({ min: -1439, max: 1439 }),
        fc.stringMatching(/^[0-9]{0,6}$/),
        fc.constantFrom(".", ","),
        fc.constantFrom(":", ""),
        (instant, offset, digits, point, colon) => {
          const local = new Date(instant + offset * 60_000).toISOString()
          const minutes = Math.abs(offset)
          const zone = `${offset < 0 ? "-" : "+"}${two(Math.floor(minutes / 60))}${colon}${two(minutes % 60)}`
          const given = local.replace(".", point).replace("Z", `${digits}${zone}`)
          expect(canonical(given)).toBe(new Date(instant).toISOString())
        },
      ),
    )
  })

  test("once canonical stay as they are, and order as text as they do in time", () => {
    const anyInstant = fc.integer({ min: 0, max: 253_402_300_799_999 })
    fc.assert(
      fc.property(anyInstant, anyInstant, (a, b) => {
        const [first, second] = [new Date(a).toISOString(), new Date(b).toISOString()]
        expect(canonical(first)).toBe(first)
        expect(first < second).toBe(a < b)
      }),
    )
  })
})

describe("metadata", () => {
  const decode = told(Interaction.Metadata)

  test("keeps strings, numbers and booleans and drops nulls", () => {
    expect(decode({ s: "", n: -1.5, t: true, f: false, gone: null, "": "empty key" })).toEqual({
      s: "",
      n: -1.5,
      t: true,
      f: false,
      "": "empty key",
    })
    expect(decode({})).toEqual({})
  })

  test("refuses everything else and names its place", () => {
    const rule = "must be a string, a number or a boolean"
    for (const value of [{}, { a: 1 }, [], [1], Number.NaN, Number.POSITIVE_INFINITY, 1n, () => 1])
      expect(decode({ fine: 1, bad: value })).toBe(`refused: bad: ${rule}`)
    expect(decode({ a: [], b: 1, c: {} })).toBe(`refused: a: ${rule}; c: ${rule}`)
    for (const value of [null, "text", 5, [], ["a"]])
      expect(decode(value)).toBe("refused: must be an object of strings, numbers and booleans")
  })

  test("refuses lone surrogates, which no database stores, in values and keys", () => {
    expect(decode({ a: "x\ud800" })).toBe("refused: a: must not contain lone surrogates")
    expect(decode({ "x\ud800": "a" })).toBe("refused: metadata keys must not contain lone surrogates")
    expect(decode({ "🎧": "🎧" })).toEqual({ "🎧": "🎧" })
  })

  test("is at most 4 KiB as JSON, in bytes, nulls not counted", () => {
    const empty = JSON.stringify({ a: "" }).length
    const tooLarge = "refused: metadata must be at most 4096 bytes as JSON"
    expect(decode({ a: "x".repeat(4096 - empty) })).toEqual({ a: "x".repeat(4096 - empty) })
    expect(decode({ a: "x".repeat(4097 - empty) })).toBe(tooLarge)
    expect(decode({ a: "é".repeat(2044) })).toEqual({ a: "é".repeat(2044) })
    expect(decode({ a: "é".repeat(2045) })).toBe(tooLarge)
    expect(decode({ a: '"'.repeat(2045) })).toBe(tooLarge)
    const nulls = Object.fromEntries(Array.from({ length: 2000 }, (_, i) => [`key${i}`, null]))
    expect(decode({ ...nulls, a: 1 })).toEqual({ a: 1 })
  })

  test("takes no prototype from a key named __proto__", () => {
    for (const value of ['"x"', "1", "null"]) {
      const kept = decode(JSON.parse(`{"__proto__": ${value}, "a": 1}`))
      expect(kept).toEqual({ a: 1 })
      expect(Object.getPrototypeOf(kept)).toBe(Object.prototype)
    }
    expect(decode(JSON.parse('{"__proto__": {"admin": true}}'))).toBe(
      "refused: __proto__: must be a string, a number or a boolean",
    )
    expect(decode(JSON.parse('{"constructor": "a", "toString": "b"}'))).toEqual(
      JSON.parse('{"constructor": "a", "toString": "b"}'),
    )
  })
})

describe("chronological", () => {
  const anyPoint = fc.record({
    occurred_at: fc.constantFrom(
      "2026-01-01T00:00:00.000Z",
      "2026-01-01T00:00:00.001Z",
      "2025-12-31T23:59:59.999Z",
    ),
    message_id: fc.constantFrom("a", "b", "c"),
  })

  test("orders by instant, then by message id, whatever the order before", () => {
    fc.assert(
      fc.property(fc.array(anyPoint), (points) => {
        const key = ({ occurred_at, message_id }: (typeof points)[number]) => `${occurred_at}|${message_id}`
        expect(points.toSorted(Interaction.chronological).map(key)).toEqual(points.map(key).toSorted())
      }),
    )
  })

  test("is antisymmetric, and 0 only for the same interaction", () => {
    fc.assert(
      fc.property(anyPoint, anyPoint, (a, b) => {
        expect(Interaction.chronological(a, b) + Interaction.chronological(b, a)).toBe(0)
        expect(Interaction.chronological(a, b) === 0).toBe(Bun.deepEquals(a, b))
      }),
    )
  })
})

describe("fast decoding", () => {
  const odd = fc.constantFrom<unknown>(
    undefined,
    null,
    "",
    " x",
    "é",
    "\ud800",
    "a\u0000",
    7,
    true,
    [],
    {},
    "x".repeat(300),
  )
  const anyId = fc.oneof({ weight: 4, arbitrary: fc.stringMatching(Interaction.idPattern) }, odd)
  const anyInstant = fc.oneof(
    { weight: 4, arbitrary: fc.date({ noInvalidDate: true }).map((date) => date.toISOString()) },
    fc.constantFrom("2026-02-10T12:34:56Z", "2026-02-10T12:34:56.789+01:00", "2026-02-30T00:00:00.000Z"),
    odd,
  )
  const anyFact = fc.oneof({ weight: 4, arbitrary: fc.oneof(fc.string(), fc.double(), fc.boolean()) }, odd)
  const usualMetadata = fc.dictionary(fc.string(), fc.oneof(fc.string(), fc.integer(), fc.boolean()))
  const usualId = fc.stringMatching(Interaction.idPattern)
  const usualInstant = fc
    .date({ min: new Date(0), max: new Date("2100-01-01"), noInvalidDate: true })
    .map((date) => date.toISOString())
  const facts = { user_id: usualId, occurred_at: usualInstant, metadata: usualMetadata }
  const usualParts: fc.Arbitrary<Interaction.RawFields> = fc.oneof(
    fc.record({ ...facts, event_type: fc.constant("search"), search_phrase: fc.string({ minLength: 1 }) }),
    fc.record({ ...facts, event_type: fc.constant("product_view"), product_id: usualId }),
  )
  const oddParts: fc.Arbitrary<Interaction.RawFields> = fc.record(
    {
      user_id: anyId,
      event_type: fc.oneof(fc.constantFrom(...defaults.names), odd),
      search_phrase: fc.oneof(fc.string({ unit: "grapheme" }), fc.constant(null), odd),
      product_id: fc.oneof(anyId, fc.constant(null)),
      occurred_at: anyInstant,
      metadata: fc.oneof(
        fc.dictionary(fc.string({ unit: "binary" }), anyFact),
        fc.constant({ note: "x".repeat(5_000) }),
        fc.constant(JSON.parse('{"__proto__": 1}')),
        odd,
      ),
    },
    { requiredKeys: [] },
  )
  /** What is usual but for some fields. */
  const anyParts = fc
    .tuple(
      usualParts,
      oddParts,
      fc.subarray(["user_id", "event_type", "search_phrase", "product_id", "occurred_at", "metadata"]),
    )
    .map(([parts, others, changed]): Interaction.RawFields => {
      const some = Object.entries(others).filter(([field]) => changed.slice(0, 2).includes(field))
      return { ...parts, ...Object.fromEntries(some) }
    })

  test("accepts only what the schema accepts, and gives the same result", () => {
    const decode = Schema.decodeUnknownEither(Interaction.Interaction)
    let usual = 0
    fc.assert(
      fc.property(anyParts, (parts) => {
        const made = Interaction.fastDecode(parts)
        if (made === undefined) return
        usual += 1
        const interaction = Interaction.make(made)
        const { product_id = null, search_phrase = null } = parts
        const { message_id } = interaction
        expect(decode({ ...parts, product_id, search_phrase, message_id })).toEqual(Either.right(interaction))
      }),
      { numRuns: 3_000 },
    )
    expect(usual).toBeGreaterThan(100)
  })

  test("accepts what this program writes itself", () => {
    for (const interaction of [search, click]) expect(Interaction.fastDecode(interaction)).toBeDefined()
  })
})
