/** The update message: which bodies are accepted, and how each error reads. */
import { describe, expect, test } from "bun:test"
import { Either, Schema } from "effect"
import fc from "fast-check"
import * as EventTypes from "../../../src/services/model/EventTypes.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import {
  decodeMessage,
  encodeMessage,
  InvalidMessage,
  notInTheFuture,
} from "../../../src/services/model/UpdateMessage.ts"

const { defaults } = EventTypes
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

describe("update messages", () => {
  const latest = Date.parse("2026-02-10T12:35:56.789Z")
  const wire = (interaction: Interaction.Interaction): Record<string, unknown> =>
    JSON.parse(new TextDecoder().decode(encodeMessage(interaction)))
  const bytes = (json: unknown) => Buffer.from(typeof json === "string" ? json : JSON.stringify(json))
  const decode = (body: unknown) =>
    Either.flatMap(decodeMessage(body instanceof Uint8Array ? body : bytes(body), defaults), (interaction) =>
      notInTheFuture(interaction, latest),
    )
  const refusal = (body: unknown) =>
    Either.match(decode(body), {
      onLeft: ({ detail, reason }) => [reason, detail] as const,
      onRight: (interaction) => ["accepted", JSON.stringify(interaction)] as const,
    })

  test("carry the documented fields, in snake case, and the version", () => {
    expect(wire(search)).toEqual({
      user_id: "u-42",
      event_type: "search",
      search_phrase: "wireless headphones",
      product_id: null,
      occurred_at: "2026-02-10T12:34:56.789Z",
      metadata: { device: "phone", page: 2, first: true },
      message_id: "0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4",
      version: "1.0",
    })
    expect(wire(click)).toMatchObject({ search_phrase: null, product_id: "p-7" })
  })

  test("of a retraction carry the message id taken back, and all that it is the hash of", () => {
    const retraction = Interaction.retract(search, { reason: "mistake" })
    expect(wire(retraction)).toEqual({
      ...wire(search),
      event_type: "retraction",
      reference: search.message_id,
      metadata: { reason: "mistake", retracted_type: "search" },
      message_id: new Bun.CryptoHasher("sha256")
        .update(`u-42|retraction|${search.message_id}|2026-02-10T12:34:56.789Z`)
        .digest("hex"),
    })
    for (const one of [retraction, Interaction.retract(click)])
      expect(decode(encodeMessage(one))).toEqual(Either.right(one))
    const mismatch = "reference: must be the message_id of the other fields"
    expect(refusal({ ...wire(retraction), metadata: { retracted_type: "product_view" } })[1]).toContain(
      mismatch,
    )
    expect(refusal({ ...wire(retraction), reference: click.message_id })[1]).toContain(mismatch)
    expect(refusal({ ...wire(retraction), reference: null })[1]).toContain("reference: ")
  })

  test("of a merge carry the id merged", () => {
    const fields = { user_id: "u-42", event_type: "merge", reference: "guest-1" } as const
    const rest = { search_phrase: null, product_id: null, occurred_at: search.occurred_at, metadata: {} }
    const merge = { ...fields, ...rest, message_id: Interaction.messageId({ ...fields, ...rest }) }
    expect(decode(encodeMessage(merge))).toEqual(Either.right(merge))
    expect(refusal({ ...wire(merge), reference: "no id" })[1]).toContain("reference: must be 1 to 64")
    expect(refusal({ ...wire(search), reference: "guest-1" })[0]).toBe("schema_violation")
  })

  test("that are nested too deeply violate the schema, wherever the nesting is", () => {
    const deep = `${"[".repeat(29_000)}${"]".repeat(29_000)}`
    for (const field of ["metadata", "user_id", "search_phrase", "occurred_at", "message_id"])
      expect(refusal(JSON.stringify({ ...wire(search), [field]: "DEEP" }).replace('"DEEP"', deep))).toEqual([
        "schema_violation",
        "must be nested at most 64 levels deep",
      ])
    const inMetadata = JSON.stringify({ ...wire(search), metadata: { a: "DEEP" } }).replace('"DEEP"', deep)
    expect(refusal(inMetadata)).toEqual(["schema_violation", "must be nested at most 64 levels deep"])
    // An unknown field of a later version 1.x is ignored, whatever it holds.
    const unknown = JSON.stringify({ ...wire(search), later: "DEEP" }).replace('"DEEP"', deep)
    expect(refusal(unknown)[0]).toBe("accepted")
  })

  test("come back as they were sent", () => {
    const anyId = fc.stringMatching(Interaction.idPattern)
    const decodePhrase = Schema.decodeUnknownEither(Interaction.SearchPhrase)
    const anyPhrase = fc
      .string({ unit: "grapheme", minLength: 1, maxLength: 60 })
      .map((text) => Either.getOrElse(decodePhrase(text), () => "phrase"))
    const anyFact = fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 20 }),
      fc.double({ noNaN: true, noDefaultInfinity: true }).map((n) => (n === 0 ? 0 : n)),
      fc.boolean(),
    )
    const facts = fc.record({
      user_id: anyId,
      occurred_at: fc.integer({ min: 0, max: latest }).map((instant) => new Date(instant).toISOString()),
      metadata: fc.dictionary(
        fc.string({ unit: "grapheme", maxLength: 10 }).filter((key) => key !== "__proto__"),
        anyFact,
        { maxKeys: 8, noNullPrototype: true },
      ),
    })
    const what = fc.oneof(
      anyPhrase.map((search_phrase) => ({ event_type: "search" as const, search_phrase })),
      fc.record({
        event_type: fc.constantFrom("product_view", "product_click", "product_purchase"),
        product_id: anyId,
      }),
    )
    fc.assert(
      fc.property(facts, what, (common, kind) => {
        const interaction = Interaction.make({ ...common, ...kind })
        expect(decode(encodeMessage(interaction))).toEqual(Either.right(interaction))
      }),
      { numRuns: 500 },
    )
  })

  test("of other producers may leave out what is null or empty, add fields, and be of any version 1.x", () => {
    const { metadata: _, product_id: __, ...lean } = wire(search)
    const expected = Either.right({ ...search, metadata: {} })
    expect(decode(lean)).toEqual(expected)
    expect(decode({ ...lean, metadata: null })).toEqual(expected)
    expect(decode({ ...wire(search), shard: 3, nested: { a: [1] }, version: "1.7" })).toEqual(
      Either.right(search),
    )
    expect(decode({ ...wire(search), version: "1.10" })).toEqual(Either.right(search))
    const { search_phrase: ___, ...view } = wire(click)
    expect(decode(view)).toEqual(Either.right(click))
    expect(decode(`\ufeff${JSON.stringify(wire(search))}`)).toEqual(Either.right(search))
  })

  test("are brought into canonical form before their id is checked", () => {
    const loose = {
      ...wire(search),
      occurred_at: "2026-02-10T14:34:56.789999+02:00",
      search_phrase: "  wireless headphones ",
    }
    expect(decode(loose)).toEqual(Either.right(search))
    const numbered = Interaction.make({
      ...click,
      event_type: "product_click",
      search_phrase: null,
      user_id: "7",
      product_id: "12",
    })
    expect(decode({ ...wire(numbered), user_id: 7, product_id: 12 })).toEqual(Either.right(numbered))
  })

  test("may be 256 KiB large, and not a byte more", () => {
    const padded = (length: number) => {
      const bare = bytes({ ...wire(search), padding: "" }).length
      return bytes({ ...wire(search), padding: "x".repeat(length - bare) })
    }
    expect(decode(padded(262_144))).toEqual(Either.right(search))
    expect(refusal(padded(262_145))).toEqual(["too_large", "262145 bytes, at most 262144 are accepted"])
  })

  test("may lie up to the latest instant that is believed, and not a millisecond later", () => {
    const made = (occurred_at: string) =>
      wire(
        Interaction.make({
          ...click,
          event_type: "product_click",
          search_phrase: null,
          product_id: "p",
          occurred_at,
        }),
      )
    expect(Either.isRight(decode(made("2026-02-10T12:35:56.789Z")))).toBe(true)
    expect(refusal(made("2026-02-10T12:35:56.790Z"))).toEqual([
      "in_the_future",
      "occurred_at 2026-02-10T12:35:56.790Z is more than 60 s in the future",
    ])
  })

  const idRule =
    "must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and neither . nor .. (an integer is accepted too)"
  const timeRule = "must be an ISO 8601 date-time with offset, as 2026-02-10T12:34:56.789Z"
  const good = wire(search)
  const view = wire(click)
  const without = (field: string, from = good) =>
    Object.fromEntries(Object.entries(from).filter(([key]) => key !== field))
  const bad: Readonly<Record<string, Readonly<Record<string, readonly [body: unknown, detail: string]>>>> = {
    not_json: {
      "no bytes": ["", "the body is not JSON in UTF-8"],
      "cut JSON": ['{"user_id": "u', "the body is not JSON in UTF-8"],
      text: ["hello", "the body is not JSON in UTF-8"],
      "Latin-1": [Buffer.from('{"a": "\xe9"}', "latin1"), "the body is not JSON in UTF-8"],
      compressed: [Bun.gzipSync(bytes(good)), "the body is not JSON in UTF-8"],
    },
    unsupported_version: {
      "version 2": [{ ...good, version: "2.0" }, "version 2.0, this worker reads 1.x"],
      "version 2 of another shape": [{ version: "2.1" }, "version 2.1, this worker reads 1.x"],
      "version 10": [{ ...good, version: "10.0" }, "version 10.0, this worker reads 1.x"],
      "version 0": [{ ...good, version: "0.9" }, "version 0.9, this worker reads 1.x"],
    },
    unknown_event_type: {
      "a type that is not configured": [
        { ...view, event_type: "wish" },
        `event_type "wish" is none of ${defaults.names.join(", ")}: add it to EVENT_WEIGHTS of every program`,
      ],
      "no name of a type": [
        { ...view, event_type: "Like it!" },
        `event_type "Like it!" is none of ${defaults.names.join(", ")}: add it to EVENT_WEIGHTS of every program`,
      ],
    },
    message_id_mismatch: {
      "the id of another user's interaction": [
        { ...good, user_id: "u-43" },
        `message_id is ${search.message_id}, its content gives ${Interaction.messageId({ ...search, user_id: "u-43" })}`,
      ],
    },
    schema_violation: {
      null: ["null", "the body must be a JSON object"],
      "a string": ['"text"', "the body must be a JSON object"],
      "a number": ["5", "the body must be a JSON object"],
      "an array": [[good], "the body must be a JSON object"],
      "no version": [without("version"), 'version: must be "1.0"'],
      "a number as version": [{ ...good, version: 1 }, 'version: must be "1.0"'],
      "a word as version": [{ ...good, version: "latest" }, 'version: must be "1.0"'],
      "no user": [without("user_id"), "user_id: is missing"],
      "an empty user": [{ ...good, user_id: "" }, `user_id: ${idRule}`],
      "null as user": [{ ...good, user_id: null }, `user_id: ${idRule}`],
      "no type": [without("event_type"), "event_type: is missing"],
      "a number as type": [{ ...view, event_type: 5 }, "event_type: must be a string"],
      "no phrase": [without("search_phrase"), "search_phrase: must be a string"],
      "null as phrase": [{ ...good, search_phrase: null }, "search_phrase: must be a string"],
      "a blank phrase": [
        { ...good, search_phrase: "  " },
        "search_phrase: must be 1 to 255 characters, has 0",
      ],
      "a control character": [
        { ...good, search_phrase: "a\u0000b" },
        "search_phrase: must not contain control characters",
      ],
      "an escaped lone surrogate": [
        JSON.stringify(good).replace("wireless", "\\ud800"),
        "search_phrase: must not contain lone surrogates",
      ],
      "a search with a product": [
        { ...good, product_id: "p" },
        "product_id: must not be set for this event_type",
      ],
      "a click with a phrase": [
        { ...view, search_phrase: "a" },
        "search_phrase: must not be set for this event_type",
      ],
      "no product": [without("product_id", view), `product_id: ${idRule}`],
      "a bad product": [{ ...view, product_id: "p q" }, `product_id: ${idRule}`],
      "no instant": [without("occurred_at"), "occurred_at: is missing"],
      "an instant without offset": [
        { ...good, occurred_at: "2026-02-10T12:34:56.789" },
        `occurred_at: ${timeRule}`,
      ],
      "Unix time": [{ ...good, occurred_at: 1_770_726_896_789 }, "occurred_at: must be a string"],
      "text as metadata": [
        { ...good, metadata: "a" },
        "metadata: must be an object of strings, numbers and booleans",
      ],
      "nested metadata": [
        { ...good, metadata: { a: { b: 1 } } },
        "metadata.a: must be a string, a number or a boolean",
      ],
      "an infinite number": [
        JSON.stringify(good).replace('"page":2', '"page":1e999'),
        "metadata.page: must be a string, a number or a boolean",
      ],
      "large metadata": [
        { ...good, metadata: { a: "x".repeat(5000) } },
        "metadata: metadata must be at most 4096 bytes as JSON",
      ],
      "no message id": [without("message_id"), "message_id: is missing"],
      "a message id in upper case": [
        { ...good, message_id: search.message_id.toUpperCase() },
        "message_id: must be 64 lower-case hexadecimal digits",
      ],
      "a short message id": [
        { ...good, message_id: search.message_id.slice(1) },
        "message_id: must be 64 lower-case hexadecimal digits",
      ],
      "a number as message id": [{ ...good, message_id: 5 }, "message_id: must be a string"],
      "several problems at once": [
        { ...good, user_id: "", occurred_at: "now", metadata: { a: [] } },
        `user_id: ${idRule}; occurred_at: ${timeRule}; metadata.a: must be a string, a number or a boolean`,
      ],
    },
  }
  for (const [reason, table] of Object.entries(bad))
    for (const [name, [body, detail]] of Object.entries(table))
      test(`are refused as ${reason}: ${name}`, () =>
        expect<unknown>(refusal(body)).toEqual([reason, detail]))

  test("are decoded after one that was not UTF-8", () => {
    expect(refusal(Uint8Array.of(0xe2, 0x82))[0]).toBe("not_json")
    expect(decode(good)).toEqual(Either.right(search))
  })

  test("never throw, whatever the bytes or the fields", () => {
    const anyFields = fc.dictionary(
      fc.oneof(fc.constantFrom(...Object.keys(good), "__proto__"), fc.string()),
      fc.jsonValue({ maxDepth: 2 }),
    )
    fc.assert(
      fc.property(fc.uint8Array(), anyFields, (noise, fields) => {
        expect(Either.isLeft(decode(noise))).toBe(true)
        expect(Either.isEither(decode({ ...good, ...fields }))).toBe(true)
      }),
    )
  })

  test("that are hostile get a short answer: at most 100 problems, each of at most 300 characters", () => {
    const many = (keys: number) => Object.fromEntries(Array.from({ length: keys }, (_, i) => [`key${i}`, []]))
    expect(refusal({ ...good, metadata: many(900) })[1].split("; ")).toHaveLength(100)
    expect(refusal({ ...good, metadata: many(5000) })).toEqual([
      "schema_violation",
      "must have at most 1000 properties",
    ])
    expect(refusal({ ...good, event_type: "x".repeat(200_000) })[1].length).toBeLessThan(300)
  })

  test("of a configured type are accepted", () => {
    const types = EventTypes.make({ wish: 0.8 })
    const cart = Interaction.make({
      ...click,
      event_type: "wish",
      search_phrase: null,
      product_id: "p",
    })
    expect(decodeMessage(encodeMessage(cart), types)).toEqual(Either.right(cart))
    expect(decodeMessage(encodeMessage(click), types)).toEqual(Either.right(click))
  })

  test("say reason and detail in one line", () => {
    expect(new InvalidMessage({ reason: "not_json", detail: "why" }).message).toBe("not_json: why")
  })
})
