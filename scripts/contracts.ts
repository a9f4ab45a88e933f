#!/usr/bin/env bun
/** `bun run contracts`: writes docs/contracts anew. A test compares them with what the program says today. */
import { documents, text } from "./contracts/documents.ts"

for (const [name, document] of Object.entries(documents))
  await Bun.write(new URL(`../docs/contracts/${name}`, import.meta.url), text(document))
console.log(`wrote ${Object.keys(documents).join(", ")}`)
