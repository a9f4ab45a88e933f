/** Every variable with its value (secrets masked), origin, default and meaning. */
import { Effect, Option } from "effect"
import * as Settings from "../../services/Settings.ts"

export const showConfig = Effect.forEach(Settings.all, (setting) =>
  Effect.gen(function* () {
    // Fails here on an invalid value, with an error that names the variable.
    yield* setting
    const given = yield* Settings.given(setting.variable)
    const value = Option.match(given, {
      onNone: () => setting.fallback ?? null,
      onSome: (text) => Settings.display(setting, text),
    })
    return {
      variable: setting.variable,
      value,
      from: Option.isSome(given) ? "environment" : setting.fallback === undefined ? "unset" : "default",
      default: setting.fallback ?? null,
      meaning: setting.meaning,
    }
  }),
)
