import { expect, test } from "bun:test"
import * as Settings from "../../src/services/Settings.ts"

test(".env.example is made from the declarations (bun run env-example)", async () => {
  const file = await Bun.file(new URL("../../.env.example", import.meta.url)).text()
  expect(file).toBe(Settings.envExample)
})
