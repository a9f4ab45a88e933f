/** `config`: shows every variable. */
import { Effect } from "effect"
import { showConfig } from "./ShowConfig.ts"
import { json, print, table } from "./support/Output.ts"
import { command } from "./support/Usage.ts"

export const config = command(
  "config",
  "Shows every variable: value (secrets masked), origin and meaning",
  { json },
  ({ json }) =>
    Effect.flatMap(showConfig, (rows) =>
      print(json, rows, (rows) =>
        table(
          ["VARIABLE", "VALUE", "FROM", "MEANING"],
          rows.map(({ from, meaning, value, variable }) => [variable, value ?? "-", from, meaning]),
        ),
      ),
    ),
)
