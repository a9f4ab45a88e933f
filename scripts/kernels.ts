#!/usr/bin/env bun
/** `bun run kernels`: compiles the WebAssembly of the catalogue's search. A test fails while the result is outdated. */
import { compiled, source, target } from "./kernels/compile.ts"

await Bun.write(target, await compiled(await Bun.file(source).text()))
