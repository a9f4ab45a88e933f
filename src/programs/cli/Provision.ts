/** `setup` and `doctor`: what the dependencies lack, and how to mend it. */
import { Command, Options } from "@effect/cli"
import { Effect } from "effect"
import * as Stack from "../../layers/Stack.ts"
import { json, print, table } from "../Output.ts"
import * as Provision from "../Provision.ts"

export const setup = Command.make(
  "setup",
  {
    check: Options.boolean("check").pipe(
      Options.withDescription("Only look; exit 1 when something is missing"),
    ),
    json,
  },
  ({ check, json }) =>
    Effect.gen(function* () {
      if (!check) {
        const done = yield* Provision.setup
        return yield* print(json, done, (rows) =>
          rows
            .map(
              ({ dependency, done }) =>
                `${dependency}: ${done.length === 0 ? "was set up" : done.join(", ")}`,
            )
            .join("\n"),
        )
      }
      const missing = yield* Provision.missing
      yield* print(json, missing, (rows) =>
        rows
          .map(
            ({ dependency, missing }) =>
              `${dependency}: ${missing.length === 0 ? "complete" : `missing ${missing.join(", ")}`}`,
          )
          .join("\n"),
      )
      if (missing.some((row) => row.missing.length > 0))
        return yield* new Provision.Unhealthy({ message: "something is missing: run user-embeddings setup" })
    }).pipe(Effect.provide(Stack.layer)),
).pipe(
  Command.withDescription("Creates tables, exchanges, queues, collections and indexes; safe to run twice"),
)

export const doctor = Command.make("doctor", { json }, ({ json }) =>
  Effect.gen(function* () {
    const diagnoses = yield* Provision.doctor
    yield* print(json, diagnoses, (rows) =>
      table(
        ["DEPENDENCY", "STATUS", "VERSION", "WHAT TO DO"],
        rows.map(({ dependency, detail, missing, remedy, status, version }) => [
          dependency,
          status,
          version ?? "-",
          [detail, missing.length > 0 ? `missing: ${missing.join(", ")}` : null, remedy]
            .filter(Boolean)
            .join("; "),
        ]),
      ),
    )
    if (diagnoses.some(({ status }) => status !== "ok"))
      return yield* new Provision.Unhealthy({ message: "not everything is in order" })
  }).pipe(Effect.provide(Stack.layer)),
).pipe(Command.withDescription("Checks each dependency: reachable, version, what is missing, how to mend it"))
