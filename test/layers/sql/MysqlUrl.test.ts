import { expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Either } from "effect"
import fc from "fast-check"
import { parseUrl } from "../../../src/layers/sql/MysqlUrl.ts"

const parse = (query: string) => parseUrl(`mysql://u%40x:p%2Fw@[::1]:3307/shop?${query}`)
const tls = (query: string) =>
  Either.match(parse(query), {
    onLeft: (problem) => problem,
    onRight: ({ connection, plaintextAllowed }) =>
      connection.ssl === undefined ? "plain" : { ...Object(connection.ssl), plaintextAllowed },
  })

test("address, user and database", () => {
  expect(Either.getOrThrow(parse("")).connection).toEqual({
    host: "::1",
    port: 3307,
    user: "u@x",
    password: "p/w",
    database: "shop",
  })
})

const encrypted = { rejectUnauthorized: false, plaintextAllowed: false }
const verified = { rejectUnauthorized: true, plaintextAllowed: false }
const identity = { ...verified, verifyIdentity: true }
const cases: ReadonlyArray<[string, object | "plain"]> = [
  ["", "plain"],
  ["ssl-mode=DISABLED", "plain"],
  ["sslmode=disable", "plain"],
  ["tls=false", "plain"],
  ["useSSL=false", "plain"],
  ["ssl-mode=PREFERRED", { rejectUnauthorized: false, plaintextAllowed: true }],
  ["ssl-mode=REQUIRED", encrypted],
  ["sslmode=require", encrypted],
  ["sslMode=trust", encrypted],
  ["tls=skip-verify", encrypted],
  ["requireSSL=true", encrypted],
  ["useSSL=true&verifyServerCertificate=true", verified],
  ["ssl_mode=verify_ca", verified],
  ["sslmode=verify-ca", verified],
  ["ssl-mode=VERIFY_IDENTITY", identity],
  ["sslmode=verify-full", identity],
  ["ssl=true", identity],
  ["tls=1", identity],
  ['ssl={"rejectUnauthorized":true}', verified],
  ['ssl={"rejectUnauthorized":false}', encrypted],
]
for (const [query, expected] of cases)
  test(`TLS by ${query || "no option"}`, () => expect(tls(query)).toEqual(expected))

test("files of certificates are read, and imply verification", () => {
  const folder = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const file = join(folder, "ca.pem")
  writeFileSync(file, "CERTIFICATE")
  expect(tls(`ssl-ca=${file}`)).toEqual({ ...verified, ca: "CERTIFICATE" })
  expect(tls(`sslmode=verify-full&sslrootcert=${file}`)).toEqual({ ...identity, ca: "CERTIFICATE" })
  rmSync(folder, { recursive: true })
  expect(tls(`ssl-ca=${file}`)).toContain(`ssl-ca: cannot read ${file}`)
  expect(tls("ssl-mode=DISABLED&ssl-ca=/etc/hostname")).toContain("no effect")
})

test("an option with a wrong value is refused by its name", () => {
  expect(tls("ssl-mode=sometimes")).toContain("ssl-mode must be one of DISABLED, PREFERRED, REQUIRED")
  expect(tls("requireSSL=maybe")).toBe("requireSSL must be true or false")
  expect(tls("ssl={")).toContain("ssl must be")
  expect(tls('ssl={"rejectUnauthorised":true}')).toContain("rejectUnauthorised")
  expect(tls("charset=latin1")).toContain("charset")
})

test("an option that is not known is refused by its name, whatever it is", () => {
  const known = /^(ssl|tls|usessl|requiressl|verify|charset|socket|enablecleartext)/i
  fc.assert(
    fc.property(fc.stringMatching(/^[A-Za-z][A-Za-z_-]{2,20}$/), fc.string(), (option, value) => {
      fc.pre(!known.test(option.replace(/[-_]/g, "")))
      expect(tls(new URLSearchParams({ [option]: value }).toString())).toBe(
        `the option ${option} is not known`,
      )
    }),
  )
})
