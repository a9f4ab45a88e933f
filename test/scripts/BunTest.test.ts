/** The result of a run, read from what Bun prints. */
import { expect, test } from "bun:test"
import { plus, readResult } from "../../scripts/test/bunTest.ts"

const output = `bun test v1.4.5

test/a.test.ts:
(pass) adds [0.10ms]
(fail) subtracts [1.00ms]

test/b.test.ts:
(skip) needs a server

1 tests failed:
(fail) subtracts [1.00ms]

 1 pass
 1 skip
 1 fail
 2 expect() calls
Ran 3 tests across 2 files. [10.00ms]`.split("\n")

test("counts passed, failed and skipped tests, and lists each failure once with its file", () => {
  expect(readResult(output, 1)).toEqual({
    passed: 1,
    failed: 1,
    skipped: 1,
    failures: ["test/a.test.ts: subtracts [1.00ms]"],
  })
})

test("a run without a summary is a failure", () => {
  expect(readResult(["bun test v1.4.5"], 137)).toMatchObject({ passed: 0, failed: 1 })
})

test("an exit code other than 0 is a failure even if no test failed", () => {
  expect(readResult([" 3 pass", " 0 fail"], 1)).toMatchObject({ passed: 3, failed: 1 })
})

test("results of several runs add up", () => {
  const one = { passed: 1, failed: 2, skipped: 3, failures: ["x"] }
  expect(plus(one, one)).toEqual({ passed: 2, failed: 4, skipped: 6, failures: ["x", "x"] })
})
