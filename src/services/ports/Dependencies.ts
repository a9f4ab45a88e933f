/** The external systems that a stack depends on: their health, their missing parts and their setup. */
import { Context, type Duration, type Effect, Schema } from "effect"

export class DependencyDown extends Schema.TaggedError<DependencyDown>()("DependencyDown", {
  dependency: Schema.String,
  /** The failure, without secrets. */
  detail: Schema.String,
  /** How to correct it. */
  remedy: Schema.String,
}) {
  override get message() {
    return `${this.dependency}: ${this.detail}`
  }
}

/** A problem and how to correct it. */
export interface Finding {
  readonly problem: string
  readonly remedy: string
}

export interface Dependency {
  /** The name in /readyz: `mysql`, `rabbitmq`, `mongodb`, `openai`, `sqlite`, `local`. */
  readonly name: string
  /** The programs that cannot work without it. */
  readonly essentialFor: ReadonlyArray<"api" | "worker" | "relay">
  /** Succeeds with the version. Takes a few seconds at most. */
  readonly ping: Effect.Effect<string, DependencyDown>
  /** How often health checks ping it; by default every 5 s while it is up, and every second while it is not. */
  readonly lookEvery?: Duration.Duration
  /** Descriptions of the parts that `setup` would create. Changes nothing. */
  readonly missing: Effect.Effect<ReadonlyArray<string>, DependencyDown>
  /** Whether it cannot be used at all while these parts are missing. By default it can. */
  readonly isUselessWithout?: (missing: ReadonlyArray<string>) => boolean
  /** What it refuses to do although it answers, for /readyz. Changes nothing. */
  readonly impaired?: Effect.Effect<ReadonlyArray<string>, DependencyDown>
  /**
   * Further problems for `doctor`, such as those that `setup` cannot correct. A problem with the same text as an element
   * of `missing` is one that remains after `setup`.
   */
  readonly inspect?: Effect.Effect<ReadonlyArray<Finding>, DependencyDown>
  /** Facts for `doctor` that are no problem. */
  readonly notes?: Effect.Effect<ReadonlyArray<string>, DependencyDown>
  /** Creates the missing parts and succeeds with descriptions of the changes. May run twice, also concurrently. */
  readonly setup: Effect.Effect<ReadonlyArray<string>, DependencyDown>
}

const maxSkewMillis = 60_000

/** A finding if two clocks (Unix ms) differ so much that interactions may seem to come from the future. */
export const clockFindings = (server: number, here: number): ReadonlyArray<Finding> => {
  const skew = server - here
  if (Math.abs(skew) <= maxSkewMillis) return []
  const difference = `${Math.round(Math.abs(skew) / 1_000)} s ${skew > 0 ? "behind" : "ahead of"}`
  return [
    {
      problem: `this machine's clock is ${difference} the server's`,
      remedy: "set both clocks by NTP (chrony)",
    },
  ]
}

export class Dependencies extends Context.Tag("user-embeddings/Dependencies")<
  Dependencies,
  ReadonlyArray<Dependency>
>() {}
