/** Parts shared by commands: bad usage, questions, timestamps. */
import { Command, HelpDoc, Options, ValidationError } from "@effect/cli"
import { Terminal } from "@effect/platform"
import { Clock, Console, Effect, Option, Record, Schema, type Types } from "effect"
import * as EmbeddingConfig from "../../../services/EmbeddingConfig.ts"
import { defaults, isReferenceEventType, referenceEventTypes } from "../../../services/model/EventTypes.ts"
import { canonicalTimestamp, UserId } from "../../../services/model/Interaction.ts"

/** The options do not fit together; exit 2. */
export class BadUsage extends Schema.TaggedError<BadUsage>()("BadUsage", { message: Schema.String }) {}

export class Declined extends Schema.TaggedError<Declined>()("Declined", {}) {
  override get message() {
    return "nothing was changed"
  }
}

export const command = <Name extends string, const Config extends Command.Command.Config, R, E>(
  name: Name,
  description: string,
  config: Config,
  run: (options: Types.Simplify<Command.Command.ParseConfig<Config>>) => Effect.Effect<void, E, R>,
) => Command.withDescription(Command.make(name, config, run), description)

export const flag = (name: string, description: string) =>
  Options.boolean(name).pipe(Options.withDescription(description))

export const maybe = <A>(option: Options.Options<A>, description: string) =>
  option.pipe(Options.withDescription(description), Options.optional)

export const onlyUser = (description: string) =>
  maybe(Options.text("user").pipe(Options.withSchema(Schema.typeSchema(UserId))), description)

export const given = <Values extends Readonly<Record<string, Option.Option<unknown>>>>(values: Values) =>
  Record.getSomes(values) as { readonly [Name in keyof Values]?: Option.Option.Value<Values[Name]> }

export const yes = Options.withAlias(flag("yes", "Do not ask for confirmation"), "y")

export const invalid = (text: string) => Effect.fail(ValidationError.invalidValue(HelpDoc.p(text)))

/** An option that takes a configured event type. */
export const eventType = (name: string, description: string) =>
  Options.text(name).pipe(
    Options.withDescription(`${description}, as product_view`),
    Options.mapEffect((type) =>
      Effect.flatMap(
        Effect.orElseSucceed(EmbeddingConfig.eventTypes, () => defaults),
        ({ has, names }) =>
          has(type) || isReferenceEventType(type)
            ? Effect.succeed(type)
            : invalid(
                `--${name} ${type}: must be one of ${[...names, ...referenceEventTypes].join(", ")} (EVENT_WEIGHTS adds types of your own)`,
              ),
      ),
    ),
    Options.optional,
  )

/** Continues when the answer is yes. Without a terminal, `--yes` is required. */
export const confirm = (question: string, yes: boolean) =>
  Effect.gen(function* () {
    if (yes) return
    if (!process.stdin.isTTY)
      return yield* new BadUsage({
        message: `${question} Confirm with --yes, because there is no terminal for the question`,
      })
    const terminal = yield* Terminal.Terminal
    yield* Console.error(`${question} [y/N]`)
    const answer = yield* Effect.orElseSucceed(terminal.readLine, () => "")
    if (!/^y(es)?$/i.test(answer.trim())) return yield* new Declined()
  })

const unit = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** `2026-02-10T12:34:56Z`, `2026-02-10` (UTC), or `90s`, `30m`, `1h`, `7d` before `now` → canonical timestamp. */
export const parseInstant = (text: string, now: number): string | undefined => {
  const ago = /^(\d{1,6})([smhd])$/.exec(text)
  if (ago !== null)
    return canonicalTimestamp(
      new Date(Math.max(0, now - Number(ago[1]) * unit[ago[2] as keyof typeof unit])).toISOString(),
    )
  return canonicalTimestamp(/^\d{4}-\d{2}-\d{2}$/.test(text) ? `${text}T00:00:00Z` : text)
}

/** An option with a point in time, decoded to a canonical timestamp. */
export const instant = (name: string, description: string) =>
  Options.text(name).pipe(
    Options.withDescription(`${description} (2026-02-10T12:34:56Z, 2026-02-10, or 1h, 7d ago)`),
    Options.mapEffect((text) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        Option.match(Option.fromNullable(parseInstant(text, now)), {
          onNone: () => invalid(`--${name} ${text}: must be like 2026-02-10T12:34:56Z, 2026-02-10, 1h or 7d`),
          onSome: Effect.succeed,
        }),
      ),
    ),
    Options.optional,
  )
