/** Writes to standard output, and notices that its reader has gone. */
import { Effect, Schema } from "effect"

/** The program that read the output has ended, as `head` does; nothing is printed about it. */
export class OutputClosed extends Schema.TaggedError<OutputClosed>()("OutputClosed", {}) {}

// Each failure is told to the callback of its write. Without a listener Bun prints it, too.
process.stdout.on("error", () => {})

/** Writes no faster than the reader reads. */
export const write = (text: string) =>
  Effect.async<void, OutputClosed>((resume) => {
    process.stdout.write(text, (cause) => resume(cause ? new OutputClosed() : Effect.void))
  })
