import { expect, test } from "bun:test"
import { welcome } from "../../src/programs/Greeting.ts"

const lines = (guarded: boolean) =>
  Bun.stripANSI(welcome({ url: "http://127.0.0.1:3000", data: "/srv/data", guarded })).split("\n")
const after = (what: string, guarded = false) =>
  lines(guarded)
    .find((line) => line.startsWith(`  ${what}  `))
    ?.slice(what.length + 4)

test("the greeting says where page, documentation and data are, and how to stop", () => {
  expect(after("page")).toBe("http://127.0.0.1:3000/")
  expect(after("docs")).toBe("http://127.0.0.1:3000/docs")
  expect(after("data")).toBe("/srv/data")
  expect(after("look")).toBe("bun run doctor · bun run stats · bun run user show 123")
  expect(after("stop")).toStartWith("Ctrl-C")
})

test("the lines to try carry a token where one is needed", () => {
  expect(after("try")).toBe(
    `curl -X POST http://127.0.0.1:3000/api/user/123/search -H 'content-type: application/json' -d '{"query":"wireless headphones"}'`,
  )
  for (const what of ["try", "then"]) {
    expect(after(what)).not.toContain("authorization")
    expect(after(what, true)).toContain('-H "authorization: Bearer $TOKEN"')
  }
})
