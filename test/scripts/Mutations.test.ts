/** `bun scripts/mutations.ts` takes hours, so this test finds out early that a mutation no longer fits the source. */
import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { mutations } from "../../scripts/mutations.ts"

const root = join(import.meta.dir, "../..")

test.each(mutations.map((mutation) => [mutation.scenario, mutation.without, mutation] as const))(
  "%s, without %s: the fragment is in its source file",
  (_, __, { file, from, to }) => {
    expect(readFileSync(join(root, file), "utf8")).toContain(from)
    expect(to).not.toBe(from)
  },
)
