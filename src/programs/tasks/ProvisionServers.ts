/** `setup` and `doctor`: create what the dependencies lack, or only check them. */
import { Array, Effect, Schema, Stream } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as TriedVersions from "../../services/operate/TriedVersions.ts"
import { DeadLetters } from "../../services/ports/DeadLetters.ts"
import { Dependencies, type Dependency, type Finding } from "../../services/ports/Dependencies.ts"
import { PhraseEmbedder } from "../../services/ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import { figure } from "../cli/support/Progress.ts"

/** `setup`: creates what is missing in every dependency, and answers what it created. Safe to run twice. */
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

/** What `doctor` reports about one dependency, or about one kind of stored data. */
export interface Diagnosis {
  readonly dependency: string
  /** `attention`: it works, but an operator should look at it. */
  readonly status: "ok" | "attention" | "incomplete" | "down"
  readonly version: string | null
  /** What `setup` would create. */
  readonly missing: ReadonlyArray<string>
  /** All problems, including what is missing. */
  readonly findings: ReadonlyArray<Finding>
  /** Facts that are no problem. */
  readonly notes: ReadonlyArray<string>
}

const nothing = Effect.succeed([])

const ofDependency = ({
  inspect = nothing,
  missing,
  name,
  notes = nothing,
  ping,
}: Dependency): Effect.Effect<Diagnosis> =>
  Effect.all([ping, missing, inspect, notes]).pipe(
    Effect.match({
      onFailure: ({ detail, remedy }): Diagnosis => ({
        dependency: name,
        status: "down",
        version: null,
        missing: [],
        findings: [{ problem: detail, remedy }],
        notes: [],
      }),
      onSuccess: ([version, missing, found, notes]): Diagnosis => {
        // A finding of `inspect` names a better remedy than `setup`.
        const creatable = missing.filter((what) => !found.some(({ problem }) => problem === what))
        const findings = [
          ...creatable.map((what) => ({ problem: `missing ${what}`, remedy: "run: user-embeddings setup" })),
          ...found,
        ]
        return {
          dependency: name,
          status: findings.length === 0 ? "ok" : "incomplete",
          version,
          missing: creatable,
          findings,
          notes: [...notes, ...TriedVersions.notes(name, version)],
        }
      },
    }),
  )

/** Products that a finding names. */
const examplesNamed = 3

/** Checks the stored data. A store that does not answer is left out: its dependency is reported as down. */
const ofContents = Effect.gen(function* () {
  const { space } = yield* PhraseEmbedder
  const { dimensions } = yield* EmbeddingConfig
  const products = yield* ProductEmbeddings
  const users = yield* UserEmbeddings
  const deadLetters = yield* DeadLetters
  const toDiagnosis = (
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
    notes: [],
  })
  const check = <A, E, R>(found: Effect.Effect<A, E, R>, diagnose: (found: A) => Diagnosis) =>
    Effect.option(Effect.map(found, diagnose))
  const counted = <E>(problems: Stream.Stream<string, E>) =>
    Stream.runFold(
      problems,
      { count: 0, examples: Array.empty<string>() },
      ({ count, examples }, example) => ({
        count: count + 1,
        examples: count < examplesNamed ? [...examples, example] : examples,
      }),
    )
  const unusable = counted(
    Stream.map(products.problems(space, dimensions), ({ detail, product_id }) => `${product_id} ${detail}`),
  )
  const unreadable = counted(Stream.map(users.unreadable, ({ detail, user_id }) => `${user_id}: ${detail}`))
  const diagnoses = yield* Effect.all(
    [
      check(Effect.all([products.count, products.countInOtherSpaces(space)]), ([all, elsewhere]) =>
        all === 0
          ? toDiagnosis("products", 1, "attention", () => ({
              problem:
                "there are no products: events about products have no effect, and nothing can be recommended",
              remedy: "user-embeddings products import FILE; for a trial, samples/catalogue.jsonl",
            }))
          : toDiagnosis("products", elsewhere, "incomplete", (n) => ({
              problem: `${n} products have no vector in the space ${space}, so their events have no effect`,
              remedy:
                "user-embeddings products import FILE imports them again; or configure the model and dimensions of their vectors",
            })),
      ),
      check(unusable, ({ count, examples }) =>
        toDiagnosis("product vectors", count, "attention", (n) => ({
          problem: `${n} products cannot be used: they are left out, and their events become dead letters: ${examples.join(", ")}`,
          remedy: "correct the program that wrote them, or import these products again",
        })),
      ),
      check(users.countInOtherSpaces(space), (amount) =>
        toDiagnosis("users", amount, "incomplete", (n) => ({
          problem: `the embeddings of ${n} users are not in the space ${space} and get no updates`,
          remedy:
            "user-embeddings rebuild --all, then user-embeddings failed retry --all --error space_mismatch",
        })),
      ),
      check(unreadable, ({ count, examples }) =>
        toDiagnosis("user documents", count, "attention", (n) => ({
          problem: `${n} documents of user_embeddings are not as this program stores them: ${examples.join(", ")}`,
          remedy:
            "correct the program that wrote them, delete these documents, and run user-embeddings replay --user U for each user",
        })),
      ),
      check(deadLetters.count, (amount) =>
        toDiagnosis("dead letters", amount, "attention", (n) => ({
          problem: `${n} messages failed for good`,
          remedy:
            "user-embeddings failed groups shows why; fix the cause, then user-embeddings failed retry --all",
        })),
      ),
    ],
    { concurrency: "unbounded" },
  )
  return Array.getSomes(diagnoses)
})

/** `doctor`: checks each dependency (reachable, version, complete) and the stored data, and names remedies. */
export const doctor = Effect.gen(function* () {
  const ofAll = Effect.forEach(yield* Dependencies, ofDependency, { concurrency: "unbounded" })
  return (yield* Effect.all([ofAll, ofContents], { concurrency: "unbounded" })).flat()
})

/** The command's report says what is wrong. */
export class CommandFailed extends Schema.TaggedError<CommandFailed>()("CommandFailed", {
  message: Schema.String,
}) {}
