import { expect, test } from "bun:test"
import { listensOn } from "../../src/programs/Api.ts"
import { welcome } from "../../src/programs/Greeting.ts"

const lines = (needsToken: boolean) =>
  Bun.stripANSI(welcome({ url: "http://127.0.0.1:3000", data: "/srv/data", needsToken })).split("\n")
const after = (what: string, needsToken = false) =>
  lines(needsToken)
    .find((line) => line.startsWith(`  ${what}  `))
    ?.slice(what.length + 4)

test("the greeting names the page, the documentation and the data, and how to stop", () => {
  expect(after("page")).toBe("http://127.0.0.1:3000/")
  expect(after("docs")).toBe("http://127.0.0.1:3000/docs")
  expect(after("data")).toBe("/srv/data")
  expect(after("look")).toBe("bun run doctor · bun run stats · bun run user show 123")
  expect(after("stop")).toStartWith("Ctrl-C")
})

test("the commands to try have a token where the API needs one", () => {
  expect(after("try")).toBe(
    `curl -X POST http://127.0.0.1:3000/api/user/123/search -H 'content-type: application/json' -d '{"query":"wireless headphones"}'`,
  )
  for (const what of ["try", "then"]) {
    expect(after(what)).not.toContain("authorization")
    expect(after(what, true)).toContain('-H "authorization: Bearer $TOKEN"')
  }
})

test("the address it listens on is named, with IPv6 in brackets, and a URL that reaches it from here", () => {
  const listens = (hostname: string) => Object.values(listensOn({ hostname, port: 3000 }))
  expect(listens("127.0.0.1")).toEqual(["127.0.0.1:3000", "http://127.0.0.1:3000"])
  expect(listens("0.0.0.0")).toEqual(["0.0.0.0:3000", "http://127.0.0.1:3000"])
  expect(listens("::1")).toEqual(["[::1]:3000", "http://[::1]:3000"])
  expect(listens("::")).toEqual(["[::]:3000", "http://[::1]:3000"])
})
