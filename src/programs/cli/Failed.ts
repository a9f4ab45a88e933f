/** `failed …`: the dead letters. */
import { Args, Command, Options } from "@effect/cli"
import { Console, Effect, Option } from "effect"
import * as Stack from "../../layers/Stack.ts"
import {
  type DeadLetterFilter,
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
import { waiting } from "./support/Progress.ts"
import { BadUsage, confirm, instant, yes } from "./support/Usage.ts"

const filters = {
  error: Options.text("error").pipe(Options.withDescription("Only with this error"), Options.optional),
  type: Options.text("type").pipe(Options.withDescription("Only of this event type"), Options.optional),
  user: Options.text("user").pipe(Options.withDescription("Only of this user"), Options.optional),
  since: instant("since", "Only what failed last at or after this"),
}
type Filters = { readonly [Name in keyof typeof filters]: Option.Option<string> }

const toFilter = ({ error, since, type, user }: Filters): DeadLetterFilter => ({
  error: Option.getOrUndefined(error),
  since: Option.getOrUndefined(since),
  type: Option.getOrUndefined(type),
  user: Option.getOrUndefined(user),
})

const letterTable = (letters: ReadonlyArray<Summary>) =>
  letters.length === 0
    ? "no dead letters"
    : table(
        ["ID", "LAST FAILED AT", "ERROR", "ATTEMPTS", "USER", "EVENT"],
        letters.map(({ attempts, error, event_type, id, last_failed_at, user_id }) => [
          id ?? "-",
          last_failed_at ?? "-",
          error ?? "-",
          String(attempts),
          user_id ?? "-",
          event_type ?? "-",
        ]),
      )

/** What a look at the letters finds; it says that it looks when that takes time. */
const found = <A, E, R>(look: Effect.Effect<A, E, R>) =>
  waiting("looking at the dead letters")(Effect.provide(look, Stack.layer))

const list = Command.make("list", { ...filters, json }, ({ json, ...given }) =>
  Effect.flatMap(found(listDeadLetters(toFilter(given))), (letters) => print(json, letters, letterTable)),
).pipe(Command.withDescription("Dead letters, oldest first; looking consumes nothing"))

const groups = Command.make("groups", { ...filters, json }, ({ json, ...given }) =>
  Effect.flatMap(found(groupDeadLetters(toFilter(given))), (groups) =>
    print(json, groups, (groups) =>
      groups.length === 0
        ? "no dead letters"
        : table(
            ["ERROR", "COUNT", "FIRST FAILED AT", "LAST FAILED AT", "EXAMPLE", "SAYS"],
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
).pipe(Command.withDescription("Dead letters by error: how many, since when, until when, an example"))

const idName = "id"
const show = Command.make(
  "show",
  { id: Args.text({ name: idName }).pipe(Args.withDescription("x-dead-letter-id or message_id")), json },
  ({ id, json }) =>
    Effect.flatMap(found(showDeadLetter(id)), (letters) =>
      print(json, letters, (letters) =>
        letters
          .map((letter) =>
            table(
              ["FIELD", "VALUE"],
              Object.entries(letter).flatMap(([field, value]) =>
                value === null ? [] : [[field, String(value)]],
              ),
            ),
          )
          .join("\n\n"),
      ),
    ),
).pipe(Command.withDescription("All about a dead letter, its body included"))

const targets = {
  ids: Args.text({ name: idName }).pipe(
    Args.withDescription("x-dead-letter-id or message_id"),
    Args.repeated,
  ),
  all: Options.boolean("all").pipe(Options.withDescription("All of them, or all that the filters leave")),
  ...filters,
  dryRun: Options.boolean("dry-run").pipe(Options.withDescription("Only tell which")),
  json,
}

/** Ids, or `--all` with filters, and never both. */
const target = (
  ids: ReadonlyArray<string>,
  all: boolean,
  given: Filters,
): Effect.Effect<DeadLetterFilter, BadUsage> => {
  const filter = toFilter(given)
  const filtered = Object.values(filter).some((value) => value !== undefined)
  if (all) return ids.length === 0 ? Effect.succeed(filter) : new BadUsage({ message: "either ids or --all" })
  if (ids.length === 0)
    return new BadUsage({ message: filtered ? "filters go with --all" : "name letters by id, or say --all" })
  return filtered ? new BadUsage({ message: "filters go with --all" }) : Effect.succeed({ ids: new Set(ids) })
}

const tell = (json: boolean, would: string, picked: ReadonlyArray<Summary>) =>
  json
    ? print(json, picked, letterTable)
    : Effect.zipRight(
        Console.log(letterTable(picked)),
        Console.error(`${picked.length} dead letters would be ${would}`),
      )

const retry = Command.make("retry", targets, ({ all, dryRun, ids, json, ...given }) =>
  Effect.gen(function* () {
    const filter = yield* target(ids, all, given)
    if (dryRun) return yield* tell(json, "retried", yield* pickDeadLetters(filter))
    if (!all) yield* pickDeadLetters(filter)
    const report = yield* retryDeadLetters(filter)
    yield* print(json, report, ({ retried }) => `${retried} dead letters published again`)
    const left = report.picked - report.retried
    if (left > 0) return yield* new NotRetried({ left })
  }).pipe(Effect.provide(Stack.layer)),
).pipe(
  Command.withDescription(
    "Publishes dead letters again, counted from the start, and removes each once its copy is confirmed",
  ),
)

const remove = Command.make("remove", { ...targets, yes }, ({ all, dryRun, ids, json, yes, ...given }) =>
  Effect.gen(function* () {
    const filter = yield* target(ids, all, given)
    const picked = yield* pickDeadLetters(filter)
    if (dryRun) return yield* tell(json, "removed", picked)
    yield* confirm(`Remove ${picked.length} dead letters for good?`, yes)
    const removed = yield* removeDeadLetters(picked)
    yield* print(json, { removed }, ({ removed }) => `${removed} dead letters removed`)
  }).pipe(Effect.provide(Stack.layer)),
).pipe(Command.withDescription("Removes dead letters for good; asks unless --yes"))

export const failed = Command.make("failed").pipe(
  Command.withDescription("Dead letters: messages that gave up or could never succeed"),
  Command.withSubcommands([list, groups, show, retry, remove]),
)
