#!/usr/bin/env bun
/** `bun run contracts`: regenerates docs/contracts and docs/problems.md. A test fails while they differ from the program. */
import * as ProblemPage from "../src/services/api/ProblemPage.ts"
import { documents, text } from "./contracts/documents.ts"
import { writeTypes } from "./contracts/types.ts"

for (const [name, document] of Object.entries(documents))
  await Bun.write(new URL(`../docs/contracts/${name}`, import.meta.url), text(document))
await Bun.write(new URL("../docs/problems.md", import.meta.url), ProblemPage.markdown())
await writeTypes()
console.log(`wrote ${Object.keys(documents).join(", ")}, openapi.d.ts, problems.md`)
