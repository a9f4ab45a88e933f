#!/usr/bin/env bun
/** `bun run contracts`: regenerates docs/contracts. A test fails while they differ from the program. */
import { documents, text } from "./contracts/documents.ts"
import { writeTypes } from "./contracts/types.ts"

for (const [name, document] of Object.entries(documents))
  await Bun.write(new URL(`../docs/contracts/${name}`, import.meta.url), text(document))
await writeTypes()
console.log(`wrote ${Object.keys(documents).join(", ")}, openapi.d.ts`)
