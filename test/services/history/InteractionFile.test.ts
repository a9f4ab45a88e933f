/** Records of files of interactions: other names of columns and types, times, and encoding. */
import { describe, expect, test } from "bun:test"
import { Either } from "effect"
import fc from "fast-check"
import * as InteractionFile from "../../../src/services/history/InteractionFile.ts"
import { Splitter } from "../../../src/services/history/RecordSplitter.ts"
import { defaults, make as eventTypesWith } from "../../../src/services/model/EventTypes.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"

const plain: InteractionFile.Reading = {
  format: "jsonl",
  delimiter: ",",
  map: {},
  types: {},
  set: {},
  ignore: [],
}
const now = Date.parse("2026-11-24T00:00:00.000Z")
const accepted = (decoded: ReturnType<ReturnType<typeof InteractionFile.decoder>>) => {
  const item = Either.getOrThrow(decoded)
  if ("reference" in item) throw new Error("is a retraction")
  return item
}
describe("decoding", () => {
  const decode = (record: object, more: Partial<InteractionFile.Reading> = {}) =>
    InteractionFile.decoder({ ...plain, ...more }, [], defaults)(JSON.stringify(record), now)
  const view = { user_id: 7, event_type: "view", product_id: 9, occurred_at: "2020-01-31T12:34:56Z" }

  test("a record becomes the same interaction as by the API", () => {
    const decoded = accepted(decode({ ...view, price: 3.5, session_id: "s" }))
    expect(decoded.interaction).toEqual(
      Interaction.make({
        user_id: "7",
        event_type: "product_view",
        product_id: "9",
        occurred_at: "2020-01-31T12:34:56.000Z",
        metadata: { price: 3.5, session_id: "s" },
      }),
    )
    expect(decoded.occurredAtGiven).toBe(true)
  })

  test("a retraction names a message id; for all else a column `reference` is metadata", () => {
    const reference = "a".repeat(64)
    const record = { ...view, event_type: "retraction", product_id: undefined, reference, reason: "refund" }
    expect(Either.getOrThrow(decode(record))).toEqual({
      user_id: "7",
      reference,
      occurred_at: "2020-01-31T12:34:56.000Z",
      metadata: { reason: "refund" },
      idempotencyKey: null,
    })
    expect(decode({ ...record, reference: "A-17" })).toEqual(
      Either.left("reference: must be 64 lower-case hexadecimal digits"),
    )
    expect(accepted(decode({ ...view, reference: "A-17" })).interaction.metadata).toEqual({
      reference: "A-17",
    })
  })

  test("columns and event types can have other names, and fields can be constant", () => {
    const reading = {
      ...plain,
      format: "csv",
      delimiter: ";",
      map: { user_id: "customer", product_id: "sku", occurred_at: "at" },
      types: { buy: "product_purchase" },
      set: { event_type: "buy" },
      ignore: ["internal"],
    } as const
    const columns = InteractionFile.header("customer;sku;at;note;internal;empty", ";")
    const decoded = InteractionFile.decoder(
      reading,
      columns,
      defaults,
    )('u-1;"p;1";1580474096;"said ""yes""";9;', now)
    expect(decoded).toEqual(
      Either.left(
        "product_id (sku): must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and neither . nor .. (an integer is accepted too)",
      ),
    )
    const good = accepted(
      InteractionFile.decoder(reading, columns, defaults)('u-1;p-1;1580474096;"said ""yes""";9;', now),
    )
    expect(good.interaction).toMatchObject({
      user_id: "u-1",
      event_type: "product_purchase",
      product_id: "p-1",
      occurred_at: "2020-01-31T12:34:56.000Z",
      metadata: { note: 'said "yes"' },
    })
  })

  test.each([
    ["2020-01-31T13:34:56+01:00"],
    ["2020-01-31 12:34:56"],
    ["2020-01-31 12:34:56 UTC"],
    ["2020-01-31 13:34:56+0100"],
    ["2020-01-31 12:34:56.0009"],
    ["1580474096"],
    [1580474096],
    [1580474096000],
  ])("%p is an instant", (occurred_at) => {
    expect(accepted(decode({ ...view, occurred_at })).interaction.occurred_at).toBe(
      "2020-01-31T12:34:56.000Z",
    )
  })

  test.each<[string, object | string, string]>([
    ["no JSON", "{", "is not JSON"],
    ["an array", "[]", "must be a JSON object"],
    ["no time", { ...view, occurred_at: undefined }, "occurred_at: is missing"],
    ["a day that is none", { ...view, occurred_at: "2021-02-29" }, "occurred_at: must be an ISO 8601"],
    ["a time to come", { ...view, occurred_at: "2030-01-01" }, "occurred_at: must not be more than 60 s"],
    ["an unknown type", { ...view, event_type: "cart" }, "event_type: must be one of search,"],
    ["both kinds", { ...view, search_phrase: "tent" }, "search_phrase: must not be set"],
    ["nested facts", { ...view, tags: ["a"] }, "metadata.tags: must be a string, a number or a boolean"],
  ])("refused with the reason: %s", (_, record, reason) => {
    const decoded =
      typeof record === "string" ? InteractionFile.decoder(plain, [], defaults)(record, now) : decode(record)
    expect(Either.getOrThrow(Either.flip(decoded))).toStartWith(reason)
  })

  test("a type that has the name of an object's property is read like any other", () => {
    const types = eventTypesWith({ constructor: 0.5 })
    const decode = InteractionFile.decoder(plain, [], types)
    const record = {
      user_id: "u",
      event_type: "constructor",
      product_id: "p",
      occurred_at: "2026-01-01T00:00:00Z",
    }
    expect(Either.isRight(decode(JSON.stringify(record), now))).toBe(true)
  })

  const event = {
    userId: "",
    anonymousId: "anon-1",
    event: "Kauf",
    properties: { product_id: 9, price: 3.5, "a.b": true, deep: { brand: "X" } },
    context: { page: { url: "/" } },
    timestamp: 1580474096789,
  }
  const segment = {
    map: {
      user_id: "userId|anonymousId",
      event_type: "event",
      product_id: "properties.product_id",
      occurred_at: "timestamp",
    },
    types: { Kauf: "purchase" },
  }

  test("columns of nested objects, and the first of several columns that has a value", () => {
    expect(accepted(decode(event, { ...segment, ignore: ["context"] })).interaction).toMatchObject({
      user_id: "anon-1",
      event_type: "product_purchase",
      product_id: "9",
      occurred_at: "2020-01-31T12:34:56.789Z",
      metadata: { "properties.price": 3.5, "properties.a.b": true, "properties.deep.brand": "X" },
    })
    const known = accepted(decode({ ...event, userId: "u-7" }, { ...segment, ignore: ["*"] }))
    expect(known.interaction).toMatchObject({ user_id: "u-7", metadata: {} })
    expect(decode({ ...event, anonymousId: null }, segment)).toEqual(
      Either.left("user_id (userId|anonymousId): is missing"),
    )
  })

  test("a CSV column may have a dot in its name; columns without a name are left out", () => {
    const columns = InteractionFile.header("user_id,event_type,properties.product_id,occurred_at,,", ",")
    const reading = { ...plain, format: "csv", map: { product_id: "properties.product_id" } } as const
    const row = InteractionFile.decoder(reading, columns, defaults)("7,view,9,2020-01-31,x,y", now)
    expect(accepted(row).interaction).toMatchObject({ product_id: "9", metadata: {} })
  })

  test.each<[string, string, Partial<InteractionFile.Reading>, string | undefined]>([
    ["with all fields", "user_id,event_type,product_id,occurred_at", {}, undefined],
    ["with two columns without a name", "user_id,event_type,product_id,occurred_at,,", {}, undefined],
    [
      "of a semicolon file",
      "user_id;event_type;product_id;occurred_at",
      {},
      'seems to have ";" between its cells: --delimiter ";"',
    ],
    ["of a tab file", "user_id\tevent_type", {}, 'seems to have "\\t" between its cells: --delimiter tab'],
    ["of a semicolon file, mapped", "kunde;was", { map: { user_id: "kunde" } }, 'seems to have ";"'],
    [
      "with a column twice",
      "user_id,event_type,product_id,occurred_at,user_id",
      {},
      'has two columns "user_id"',
    ],
    [
      "of other names",
      "kunde,was,wann",
      {},
      "has no column user_id, event_type, occurred_at, product_id or search_phrase; its columns are kunde, was, wann",
    ],
    [
      "without a fallback",
      "a,event_type,product_id,occurred_at",
      { map: { user_id: "a|b" } },
      'has no column "b" for user_id',
    ],
    [
      "with constants",
      "who,what",
      { map: { user_id: "who", product_id: "what" }, set: { event_type: "view", occurred_at: "2020-01-01" } },
      undefined,
    ],
  ])("a header %s", (_, text, more, problem) => {
    const reading = { ...plain, format: "csv", ...more } as const
    const found = InteractionFile.headerProblem(InteractionFile.header(text, ","), reading)
    if (problem === undefined) expect(found).toBeUndefined()
    else expect(found).toStartWith(problem)
  })

  test("a row with too few cells is rejected", () => {
    const decoded = InteractionFile.decoder(
      { ...plain, format: "csv" },
      ["a", "b", "c"],
      defaults,
    )("1,2", now)
    expect(decoded).toEqual(Either.left("has 2 cells, the header 3"))
  })
})

describe("encoding", () => {
  const metadata = fc.dictionary(
    fc.string({ minLength: 1, maxLength: 8 }),
    fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 12 }),
      fc.double({ noDefaultInfinity: true, noNaN: true }),
      fc.boolean(),
    ),
    { maxKeys: 4, noNullPrototype: true },
  )
  const phrase = fc
    .string({ unit: "grapheme", minLength: 1, maxLength: 40 })
    .map((text) =>
      text
        .replace(/\p{Cc}/gu, " ")
        .trim()
        .normalize("NFC"),
    )
    .filter((text) => text !== "" && [...text].length <= 255)
  const interaction = fc
    .record({
      user_id: fc.stringMatching(Interaction.idPattern),
      occurred_at: fc.date({ min: new Date(0), max: new Date(now), noInvalidDate: true }),
      metadata,
      phrase,
      product_id: fc.stringMatching(Interaction.idPattern),
      event_type: fc.constantFrom(...defaults.names),
    })
    .map(({ event_type, metadata, occurred_at, phrase, product_id, user_id }) => {
      const facts = { user_id, occurred_at: occurred_at.toISOString(), metadata: { ...metadata } }
      return event_type === "search"
        ? Interaction.make({ ...facts, event_type, search_phrase: phrase })
        : Interaction.make({ ...facts, event_type, product_id })
    })

  test.each(["jsonl", "csv"] as const)(
    "a retraction that is exported as %s is read back by its reference",
    (format) => {
      const columns = InteractionFile.header(InteractionFile.csvHeader, ",")
      const taken = Interaction.make({
        user_id: "u",
        event_type: "search",
        search_phrase: "shoes",
        occurred_at: "2026-01-31T12:00:00.000Z",
        metadata: {},
      })
      const interaction = Interaction.retract(taken, { reason: "mistake" })
      const line = InteractionFile.encode(format, { id: 1, interaction, trace: null, recordedAt: now })
      const decode = InteractionFile.decoder({ ...plain, format }, columns, defaults)
      expect(Either.getOrThrow(decode(line, now))).toEqual({
        user_id: "u",
        reference: taken.message_id,
        occurred_at: taken.occurred_at,
        metadata: { reason: "mistake", retracted_type: "search" },
        idempotencyKey: null,
      })
    },
  )

  test.each(["jsonl", "csv"] as const)("a merge that is exported as %s is imported as it was", (format) => {
    const columns = InteractionFile.header(InteractionFile.csvHeader, ",")
    const interaction = Interaction.merge("u", "guest-1", "2026-01-31T12:00:00.000Z", { device: "phone" })
    const line = InteractionFile.encode(format, { id: 1, interaction, trace: null, recordedAt: now })
    const decode = InteractionFile.decoder({ ...plain, format }, columns, defaults)
    expect(accepted(decode(line, now)).interaction).toEqual(interaction)
  })

  test.each(["jsonl", "csv"] as const)("what is exported as %s is imported as it was", (format) => {
    const columns = InteractionFile.header(InteractionFile.csvHeader, ",")
    const decode = InteractionFile.decoder({ ...plain, format }, columns, defaults)
    fc.assert(
      fc.property(fc.array(interaction, { maxLength: 5 }), (interactions) => {
        const text = interactions
          .map(
            (interaction) =>
              `${InteractionFile.encode(format, { id: 1, interaction, trace: null, recordedAt: now })}\n`,
          )
          .join("")
        const splitter = new Splitter({ format, delimiter: "," }, { offset: 0, line: 1 })
        const back = [...splitter.push(Buffer.from(text)), ...splitter.end()].map(({ text }) =>
          accepted(decode(text, now)),
        )
        expect(back.map(({ interaction }) => interaction)).toEqual(
          interactions.map((one) => ({ ...one, metadata: JSON.parse(JSON.stringify(one.metadata)) })),
        )
      }),
    )
  })
})
