/** A program whose reader has gone notices it, and nothing is printed about it. */
import { expect, test } from "bun:test"

const program = `
  import { Effect } from "effect"
  import { write } from "./src/layers/files/StandardOutput.ts"
  const writing = Effect.forever(Effect.zipRight(write("x"), Effect.sleep("5 millis")))
  const exit = await Effect.runPromiseExit(writing)
  // As long as a program closes its connections.
  await Bun.sleep(50)
  process.exit(exit.cause.error._tag === "OutputClosed" ? 141 : 1)`

test("small writes to a reader that has gone", async () => {
  const child = Bun.spawn(
    ["bash", "-c", `"$0" -e "$1" | head -c 1 > /dev/null; exit \${PIPESTATUS[0]}`, process.execPath, program],
    { stdout: "ignore", stderr: "pipe" },
  )
  const [errors, code] = await Promise.all([new Response(child.stderr).text(), child.exited])
  expect({ errors, code }).toEqual({ errors: "", code: 141 })
})
