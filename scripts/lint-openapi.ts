#!/usr/bin/env bun
/** Checks docs/contracts/openapi.json by the strict rules of Redocly's linter. Part of `bun run check`. */
import { resolve } from "node:path"
import { createConfig, formatProblems, getTotals, lint } from "@redocly/openapi-core"

const ref = resolve(import.meta.dir, "../docs/contracts/openapi.json")
const problems = await lint({ ref, config: await createConfig({ extends: ["recommended-strict"] }) })
formatProblems(problems, { format: "codeframe", totals: getTotals(problems) })
process.exitCode = problems.length > 0 ? 1 : 0
