/** The outside parts that a stack stands on: whether they answer, what they lack, and how to set them up. */
import { Context, type Effect, Schema } from "effect"

export class DependencyDown extends Schema.TaggedError<DependencyDown>()("DependencyDown", {
  dependency: Schema.String,
  /** What failed, without secrets. */
  detail: Schema.String,
  /** What to do about it. */
  remedy: Schema.String,
}) {
  override get message() {
    return `${this.dependency}: ${this.detail}`
  }
}

/** Something that is out of order, and what to do about it. */
export interface Finding {
  readonly problem: string
  readonly remedy: string
}

export interface Dependency {
  /** As in /readyz: `mysql`, `rabbitmq`, `mongodb`, `openai`, `sqlite`, `local`. */
  readonly name: string
  /** The parts that can't do their job without it. */
  readonly essentialFor: ReadonlyArray<"api" | "worker" | "relay">
  /** Answers with the version, or says why it can't. Bounded: a few seconds. */
  readonly ping: Effect.Effect<string, DependencyDown>
  /** What `setup` would create, each in words; empty when nothing is missing. Looks only. */
  readonly missing: Effect.Effect<ReadonlyArray<string>, DependencyDown>
  /**
   * For `doctor`: what the others do not see, or `setup` can't mend. A problem in the words of `missing` is one that
   * stays after `setup`.
   */
  readonly inspect?: Effect.Effect<ReadonlyArray<Finding>, DependencyDown>
  /** Creates what is missing and says what it did; safe to run twice and side by side. */
  readonly setup: Effect.Effect<ReadonlyArray<string>, DependencyDown>
}

const mostSkewMillis = 60_000

/** Clocks that are apart, `server` and `here` in Unix ms: events seem to come from the future then. */
export const clockFindings = (server: number, here: number): ReadonlyArray<Finding> => {
  const skew = server - here
  if (Math.abs(skew) <= mostSkewMillis) return []
  const apart = `${Math.round(Math.abs(skew) / 1_000)} s ${skew > 0 ? "behind" : "ahead of"}`
  return [
    { problem: `this machine's clock is ${apart} the server's`, remedy: "set both clocks by NTP (chrony)" },
  ]
}

export class Dependencies extends Context.Tag("user-embeddings/Dependencies")<
  Dependencies,
  ReadonlyArray<Dependency>
>() {}
