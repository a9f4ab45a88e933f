import { Context, type Effect } from "effect"
import type { Interaction } from "./Interaction.ts"
import type { Appended, InteractionLogError } from "./InteractionLog.ts"

/** What a client sent, decoded. */
export interface Submission {
  readonly interaction: Interaction
  readonly idempotencyKey: string | null
  readonly occurredAtGiven: boolean
}

export class InteractionRecorder extends Context.Tag("user-embeddings/InteractionRecorder")<
  InteractionRecorder,
  {
    /**
     * Records submissions and answers in their order once they are committed. Publishing follows by itself and is not
     * waited for.
     */
    readonly record: (
      submissions: ReadonlyArray<Submission>,
    ) => Effect.Effect<ReadonlyArray<Appended>, InteractionLogError>
  }
>() {}
