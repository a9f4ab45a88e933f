/** Sets the dependencies up, or only looks at what is missing or out of order. */
import { Array, Effect, Schema } from "effect"
import { DeadLetters } from "../../services/ports/DeadLetters.ts"
import { Dependencies, type Dependency, type Finding } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { figure } from "../cli/support/Progress.ts"

/** `setup`: creates what is missing in every dependency, and says what it did. Safe to run twice. */
export const setup = Effect.gen(function* () {
  const dependencies = yield* Dependencies
  return yield* Effect.forEach(dependencies, ({ name, setup }) =>
    Effect.map(setup, (done) => ({ dependency: name, done })),
  )
})

/** `setup --check`: what `setup` would create. */
export const missing = Effect.gen(function* () {
  const dependencies = yield* Dependencies
  return yield* Effect.forEach(dependencies, ({ missing, name }) =>
    Effect.map(missing, (missing) => ({ dependency: name, missing })),
  )
})

/** What `doctor` finds out about one dependency, or about what is stored. */
export interface Diagnosis {
  readonly dependency: string
  /** `attention`: it works, and somebody should look. */
  readonly status: "ok" | "attention" | "incomplete" | "down"
  readonly version: string | null
  /** What `setup` would create. */
  readonly missing: ReadonlyArray<string>
  /** All that is out of order, what is missing included. */
  readonly findings: ReadonlyArray<Finding>
}

const ofDependency = ({ inspect, missing, name, ping }: Dependency): Effect.Effect<Diagnosis> =>
  Effect.all([ping, missing, inspect ?? Effect.succeed<ReadonlyArray<Finding>>([])]).pipe(
    Effect.match({
      onFailure: ({ detail, remedy }): Diagnosis => ({
        dependency: name,
        status: "down",
        version: null,
        missing: [],
        findings: [{ problem: detail, remedy }],
      }),
      onSuccess: ([version, missing, found]): Diagnosis => {
        const mendable = missing.filter((what) => !found.some(({ problem }) => problem === what))
        const findings = [
          ...mendable.map((what) => ({ problem: `missing ${what}`, remedy: "run: user-embeddings setup" })),
          ...found,
        ]
        return {
          dependency: name,
          status: findings.length === 0 ? "ok" : "incomplete",
          version,
          missing: mendable,
          findings,
        }
      },
    }),
  )

/** What is stored and can't be used, or waits for somebody. Nothing is told of stores that do not answer. */
const ofContents = Effect.gen(function* () {
  const { space } = yield* PhraseEmbedder
  const products = yield* ProductEmbeddings
  const users = yield* UserEmbeddings
  const letters = yield* DeadLetters
  const stored = (
    dependency: string,
    amount: number,
    status: Diagnosis["status"],
    finding: (amount: string) => Finding,
  ): Diagnosis => ({
    dependency,
    status: amount === 0 ? "ok" : status,
    version: null,
    missing: [],
    findings: amount === 0 ? [] : [finding(figure(amount))],
  })
  const told = <A, E, R>(found: Effect.Effect<A, E, R>, diagnosis: (found: A) => Diagnosis) =>
    Effect.option(Effect.map(found, diagnosis))
  const looked = yield* Effect.all(
    [
      told(Effect.all([products.count, products.countInOtherSpaces(space)]), ([all, elsewhere]) =>
        all === 0
          ? stored("products", 1, "attention", () => ({
              problem: "there are none: their events count for nothing, and nothing can be recommended",
              remedy: "user-embeddings products import FILE; to try things out, samples/catalogue.jsonl",
            }))
          : stored("products", elsewhere, "incomplete", (n) => ({
              problem: `${n} products have no vector in the space ${space} and count for nothing`,
              remedy:
                "import them again: user-embeddings products import FILE; or go back to the model and dimensions they were made with",
            })),
      ),
      told(users.countInOtherSpaces(space), (amount) =>
        stored("users", amount, "incomplete", (n) => ({
          problem: `${n} users have their embedding in another space than ${space} and get no updates`,
          remedy:
            "user-embeddings rebuild --all, then user-embeddings failed retry --all --error space_mismatch",
        })),
      ),
      told(letters.count, (amount) =>
        stored("dead letters", amount, "attention", (n) => ({
          problem: `${n} messages gave up or could never succeed`,
          remedy:
            "user-embeddings failed groups says why; mend that, then user-embeddings failed retry --all",
        })),
      ),
    ],
    { concurrency: "unbounded" },
  )
  return Array.getSomes(looked)
})

/** `doctor`: each dependency: reachable, version, what is missing or wrong; then what is stored; how to mend it. */
export const doctor = Effect.gen(function* () {
  const ofAll = Effect.forEach(yield* Dependencies, ofDependency, { concurrency: "unbounded" })
  return (yield* Effect.all([ofAll, ofContents], { concurrency: "unbounded" })).flat()
})

/** Something is not as it should be; the report says what. */
export class CommandFailed extends Schema.TaggedError<CommandFailed>()("CommandFailed", {
  message: Schema.String,
}) {}
