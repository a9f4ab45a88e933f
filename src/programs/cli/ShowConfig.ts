/** Every variable with its value (secrets masked), origin, default and meaning. */
import { Effect, Option } from "effect"
import * as Settings from "../../services/Settings.ts"

export const showConfig = Effect.forEach(Settings.all, (setting) =>
  Effect.gen(function* () {
    // Fails here on an invalid value, with an error that names the variable.
    yield* setting
    const given = yield* Settings.textOf(setting)
    const isInEnvironment = Option.isSome(yield* Settings.given(setting.variable))
    const value = Option.match(given, {
      onNone: () => setting.fallback ?? null,
      onSome: (text) => Settings.display(setting, text),
    })
    const from = isInEnvironment
      ? "environment"
      : Option.isSome(given)
        ? "file"
        : setting.fallback === undefined
          ? "unset"
          : "default"
    return {
      variable: setting.variable,
      value,
      from,
      default: setting.fallback ?? null,
      meaning: setting.meaning,
    }
  }),
)
