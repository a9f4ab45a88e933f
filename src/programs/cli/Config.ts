/** `config`: shows every variable. */
import { Command } from "@effect/cli"
import { Effect } from "effect"
import { showConfig } from "./ShowConfig.ts"
import { json, print, table } from "./support/Output.ts"

export const config = Command.make("config", { json }, ({ json }) =>
  Effect.flatMap(showConfig, (rows) =>
    print(json, rows, (rows) =>
      table(
        ["VARIABLE", "VALUE", "FROM", "MEANING"],
        rows.map(({ from, meaning, value, variable }) => [variable, value ?? "-", from, meaning]),
      ),
    ),
  ),
).pipe(Command.withDescription("Shows every variable: value (secrets masked), origin and meaning"))
