import { expect, test } from "bun:test"
import { Either } from "effect"
import fc from "fast-check"
import { nodeUrls } from "../../src/services/NodeUrls.ts"

const amqp = ["amqp:", "amqps:"]
const urls = (text: string) => Either.getOrThrow(nodeUrls(text, amqp))
const problem = (text: string) => Either.getOrThrow(Either.flip(nodeUrls(text, amqp)))

test("several nodes are written as whole URLs, or with the user first and the path last", () => {
  expect(urls("amqp://a")).toEqual(["amqp://a"])
  expect(urls("amqp://u:p@a/shop, amqp://v:q@b:5673/shop")).toEqual([
    "amqp://u:p@a/shop",
    "amqp://v:q@b:5673/shop",
  ])
  expect(urls("amqps://u:p@a:5671,b:5672,[::1]/shop?heartbeat=5")).toEqual([
    "amqps://u:p@a:5671/shop?heartbeat=5",
    "amqps://u:p@b:5672/shop?heartbeat=5",
    "amqps://u:p@[::1]/shop?heartbeat=5",
  ])
  expect(urls("amqp://a,b/shop,amqp://u:p@c,d/shop")).toEqual([
    "amqp://a/shop",
    "amqp://b/shop",
    "amqp://u:p@c/shop",
    "amqp://u:p@d/shop",
  ])
})

test("a bad part is named by its place, without its text", () => {
  const cases: ReadonlyArray<readonly [string, string]> = [
    ["amqp://u:p@a,", "part 2 of 2 is empty"],
    ["amqp://u:p@a,,b", "part 2 of 3 is empty"],
    [
      "amqp://u:hunter2@a,b:port",
      "part 2 of 2 has no valid host and port; write a comma in a password as %2C",
    ],
    [
      "amqp://u:hunter2@a,b:99999",
      "part 2 of 2 has no valid host and port; write a comma in a password as %2C",
    ],
    ["amqp://u:p@a,http://hunter2@b", "part 2 of 2 must start with amqp:// or amqps://"],
    ["amqp://u:p@a/shop,b", "part 1 of 2 has a path; write the path after the last host"],
    ["amqp://u:p@a/shop,amqp://u:p@b/other", "part 2 of 2 has another path than part 1; all need the same"],
    [
      "amqp://u:p@a,v:hunter2@b",
      "part 2 of 2 has a user but no protocol; write a comma in a password as %2C",
    ],
    ["amqp://u:hunter,2@a", "part 1 of 2 has no valid host and port; write a comma in a password as %2C"],
    ["amqp:///shop", "must be a URL that starts with amqp:// or amqps://"],
  ]
  for (const [text, told] of cases) expect([text, problem(text)]).toEqual([text, told])
})

test("both forms of a list mean the same", () => {
  const host = fc.oneof(
    fc.domain(),
    fc.ipV4(),
    fc
      .ipV6()
      .map((address) => `[${address}]`)
      .filter((one) => URL.canParse(`amqp://${one}`)),
  )
  const node = fc.tuple(host, fc.option(fc.integer({ min: 1, max: 65_535 }), { nil: undefined }))
  const name = fc.stringMatching(/^[a-z%][a-z0-9]{0,9}$/).map(encodeURIComponent)
  fc.assert(
    fc.property(
      fc.array(node, { minLength: 1, maxLength: 5 }),
      name,
      name,
      name,
      (nodes, user, password, path) => {
        const hosts = nodes.map(([host, port]) => (port === undefined ? host : `${host}:${port}`))
        const whole = hosts.map((one) => `amqp://${user}:${password}@${one}/${path}`)
        expect(urls(whole.join(","))).toEqual(whole)
        expect(urls(`amqp://${user}:${password}@${hosts.join(",")}/${path}`)).toEqual(whole)
      },
    ),
  )
})
