/** `failed …`: the dead letters, which are messages in the queue `failed`. */
import { Args, Command, Options } from "@effect/cli"
import { Console, Effect, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import {
  groupDeadLetters,
  listDeadLetters,
  NotRetried,
  pickDeadLetters,
  removeDeadLetters,
  retryDeadLetters,
  type Summary,
  showDeadLetter,
} from "../../services/operate/DeadLetterAdmin.ts"
import { json, print, table } from "./support/Output.ts"
import { sayingWhere, waiting } from "./support/Progress.ts"
import { BadUsage, command, confirm, flag, given, instant, maybe, yes } from "./support/Usage.ts"

const filters = {
  error: maybe(Options.text("error"), "Only dead letters with this error"),
  type: maybe(Options.text("type"), "Only events of this type"),
  user: maybe(Options.text("user"), "Only events of this user"),
  product: maybe(Options.text("product"), "Only events of this product"),
  since: instant("since", "Only dead letters that failed last at or after this time"),
}
type Filters = { readonly [Name in keyof typeof filters]: Option.Option<string> }

const toTable = (deadLetters: ReadonlyArray<Summary>) =>
  deadLetters.length === 0
    ? "no dead letters"
    : table(
        ["ID", "LAST FAILED AT", "ERROR", "ATTEMPTS", "USER", "EVENT"],
        deadLetters.map(({ attempts, error, event_type, id, last_failed_at, user_id }) => [
          id ?? "-",
          last_failed_at ?? "-",
          error ?? "-",
          String(attempts),
          user_id ?? "-",
          event_type ?? "-",
        ]),
      )

/** Reads with progress on the terminal. */
const reading = <A, E, R>(read: Effect.Effect<A, E, R>) =>
  waiting("reading the dead letters")(Effect.provide(read, Stack.layer))

const list = command(
  "list",
  "Lists the dead letters, oldest first, and leaves them in the queue",
  { ...filters, json },
  ({ json, ...filter }) =>
    Effect.flatMap(reading(listDeadLetters(given(filter))), (deadLetters) =>
      print(json, deadLetters, toTable),
    ),
)

const groups = command(
  "groups",
  "Counts the dead letters by error, with the first, the last and an example",
  { ...filters, json },
  ({ json, ...filter }) =>
    Effect.flatMap(reading(groupDeadLetters(given(filter))), (groups) =>
      print(json, groups, (groups) =>
        groups.length === 0
          ? "no dead letters"
          : table(
              ["ERROR", "COUNT", "FIRST FAILED AT", "LAST FAILED AT", "EXAMPLE", "MESSAGE"],
              groups.map(({ count, error, example, first_failed_at, last_failed_at }) => [
                error ?? "-",
                String(count),
                first_failed_at ?? "-",
                last_failed_at ?? "-",
                example.id ?? example.message_id ?? "-",
                example.message ?? "-",
              ]),
            ),
      ),
    ),
)

const idName = "id"
const show = command(
  "show",
  "Shows everything about one dead letter, including its body",
  { id: Args.text({ name: idName }).pipe(Args.withDescription("x-dead-letter-id or message_id")), json },
  ({ id, json }) =>
    Effect.flatMap(reading(showDeadLetter(id)), (deadLetters) =>
      print(json, deadLetters, (deadLetters) =>
        deadLetters
          .map((deadLetter) =>
            table(
              ["FIELD", "VALUE"],
              Object.entries(deadLetter).flatMap(([field, value]) =>
                value === null ? [] : [[field, String(value)]],
              ),
            ),
          )
          .join("\n\n"),
      ),
    ),
)

const targets = {
  ids: Args.text({ name: idName }).pipe(
    Args.withDescription("x-dead-letter-id or message_id"),
    Args.repeated,
  ),
  all: flag("all", "All dead letters that match the filters"),
  ...filters,
  dryRun: flag("dry-run", "Only list them; change nothing"),
  json,
}

/** Either ids or `--all` with filters. */
const target = (ids: ReadonlyArray<string>, all: boolean, options: Filters) => {
  const filter = given(options)
  const filtered = Object.values(options).some(Option.isSome)
  if (all)
    return ids.length === 0 ? Effect.succeed(filter) : new BadUsage({ message: "give either ids or --all" })
  if (ids.length === 0)
    return new BadUsage({
      message: filtered ? "filters need --all" : "give the ids of dead letters, or --all",
    })
  return filtered ? new BadUsage({ message: "filters need --all" }) : Effect.succeed({ ids: new Set(ids) })
}

const dryRunReport = (json: boolean, would: string, picked: ReadonlyArray<Summary>) =>
  json
    ? print(json, picked, toTable)
    : Effect.zipRight(
        Console.log(toTable(picked)),
        Console.error(`${picked.length} dead letters would be ${would}`),
      )

const retry = command(
  "retry",
  "Publishes dead letters again for the workers, with new attempts, and removes each when the broker has confirmed it",
  targets,
  ({ all, dryRun, ids, json, ...filters }) =>
    Effect.gen(function* () {
      const filter = yield* target(ids, all, filters)
      if (dryRun) return yield* dryRunReport(json, "retried", yield* pickDeadLetters(filter))
      if (!all) yield* pickDeadLetters(filter)
      const report = yield* sayingWhere(
        retryDeadLetters(filter),
        () => "stopped; run it again to retry the dead letters that are left",
      )
      yield* print(json, report, ({ retried }) => `${retried} dead letters published again`)
      const left = report.picked - report.retried
      if (left > 0) return yield* new NotRetried({ left })
    }).pipe(Effect.provide(Stack.layer)),
)

const remove = command(
  "remove",
  "Deletes dead letters; asks before unless --yes",
  { ...targets, yes },
  ({ all, dryRun, ids, json, yes, ...filters }) =>
    Effect.gen(function* () {
      const filter = yield* target(ids, all, filters)
      const picked = yield* pickDeadLetters(filter)
      if (dryRun) return yield* dryRunReport(json, "removed", picked)
      if (picked.length > 0) yield* confirm(`Delete ${picked.length} dead letters?`, yes)
      const removed = yield* sayingWhere(
        removeDeadLetters(picked),
        () => "stopped; run it again to remove the dead letters that are left",
      )
      yield* print(json, { removed }, ({ removed }) => `${removed} dead letters removed`)
    }).pipe(Effect.provide(Stack.layer)),
)

export const failed = Command.make("failed").pipe(
  Command.withDescription("Manage dead letters: messages whose processing failed for good"),
  Command.withSubcommands([list, groups, show, retry, remove]),
)
