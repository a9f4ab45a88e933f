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

export interface Dependency {
  /** As in /readyz: `mysql`, `rabbitmq`, `mongodb`, `openai`, `sqlite`, `local`. */
  readonly name: string
  /** The parts that can't do their job without it. */
  readonly essentialFor: ReadonlyArray<"api" | "worker" | "relay">
  /** Answers with the version, or says why it can't. Bounded: a few seconds. */
  readonly ping: Effect.Effect<string, DependencyDown>
  /** What `setup` would create, each in words; empty when nothing is missing. Looks only. */
  readonly missing: Effect.Effect<ReadonlyArray<string>, DependencyDown>
  /** Creates what is missing and says what it did; safe to run twice and side by side. */
  readonly setup: Effect.Effect<ReadonlyArray<string>, DependencyDown>
}

export class Dependencies extends Context.Tag("user-embeddings/Dependencies")<
  Dependencies,
  ReadonlyArray<Dependency>
>() {}
