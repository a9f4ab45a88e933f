/** `setup` and `doctor`: create and check what the dependencies need. */
import { Array, Effect, Record } from "effect"
import * as Stack from "../../layers/Stack.ts"
import * as Provision from "../tasks/ProvisionServers.ts"
import { green, json, print, red, table, yellow } from "./support/Output.ts"
import { waiting } from "./support/Progress.ts"
import { command, flag } from "./support/Usage.ts"

export const setup = command(
  "setup",
  "Creates the tables, exchanges, queues, collections and indexes that are missing; safe to run again",
  { check: flag("check", "Only check; exit with 1 when something is missing"), json },
  ({ check, json }) =>
    Effect.gen(function* () {
      if (!check) {
        const done = yield* waiting("setting up")(Provision.setup)
        return yield* print(json, done, (rows) =>
          rows
            .map(
              ({ dependency, done }) =>
                `${dependency}: ${done.length === 0 ? "nothing was missing" : done.join(", ")}`,
            )
            .join("\n"),
        )
      }
      const missing = yield* waiting("asking the servers")(Provision.missing)
      yield* print(json, missing, (rows) =>
        rows
          .map(
            ({ dependency, missing }) =>
              `${dependency}: ${missing.length === 0 ? "complete" : `missing ${missing.join(", ")}`}`,
          )
          .join("\n"),
      )
      if (missing.some((row) => row.missing.length > 0))
        return yield* new Provision.CommandFailed({
          message: "something is missing: run user-embeddings setup",
        })
    }).pipe(Effect.provide(Stack.forSetup)),
)

const paint: Record<Provision.Diagnosis["status"], (text: string) => string> = {
  ok: green,
  attention: yellow,
  incomplete: yellow,
  down: red,
}

/** Findings with the same remedy are printed together. */
const byRemedy = (findings: Provision.Diagnosis["findings"]) =>
  Object.entries(
    Record.map(
      Array.groupBy(findings, ({ remedy }) => remedy),
      (found) => found.map(({ problem }) => problem),
    ),
  )

export const doctor = command(
  "doctor",
  "Checks each server and the stored data, and says how to fix what is missing or wrong",
  { json },
  ({ json }) =>
    Effect.gen(function* () {
      const diagnoses = yield* waiting("asking the servers")(Provision.doctor)
      yield* print(json, diagnoses, (rows) =>
        [
          table(
            ["WHAT", "STATUS", "VERSION"],
            rows.map(({ dependency, status, version }) => [
              dependency,
              paint[status](status),
              version ?? "-",
            ]),
          ),
          ...rows.flatMap(({ dependency, findings }) =>
            byRemedy(findings).map(
              ([remedy, problems]) =>
                `${problems.map((problem) => `${dependency}: ${problem}`).join("\n")}\n  → ${remedy}`,
            ),
          ),
          ...rows.flatMap(({ dependency, notes }) => notes.map((note) => `${dependency}: ${note}`)),
        ].join("\n\n"),
      )
      if (diagnoses.some(({ status }) => status === "down" || status === "incomplete"))
        return yield* new Provision.CommandFailed({ message: "some checks failed" })
    }).pipe(Effect.provide(Stack.forSetup)),
)
