/** `evaluate`: tries settings on a history. */
import { isDeepStrictEqual } from "node:util"
import { Args, Options } from "@effect/cli"
import { Array as Arr, Effect, Either, Layer, Option } from "effect"
import * as Embedder from "../../layers/embedder/Embedder.ts"
import * as Stack from "../../layers/Stack.ts"
import * as EmbeddingConfig from "../../services/EmbeddingConfig.ts"
import type { Estimate } from "../../services/history/Evaluation.ts"
import { builtInEventTypes } from "../../services/model/EventTypes.ts"
import { evaluate as evaluateFile, productsOfFile, productsOfStack } from "../tasks/EvaluateHistory.ts"
import { reading, toReading } from "./Import.ts"
import { json, print, table } from "./support/Output.ts"
import { figure, measured } from "./support/Progress.ts"
import { command, eventType, flag, maybe } from "./support/Usage.ts"

const settingsShown = 6

const cell = ({ high, low, mean }: Estimate) => `${mean.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`

const variablesOf = (weights: Report["verdict"]["best"]["weights"]): string => {
  const variables = new Map<string, string>(builtInEventTypes.map(({ name, variable }) => [name, variable]))
  const [builtIn, own] = Arr.partitionMap(Object.entries(weights), ([name, weight]) => {
    const variable = variables.get(name)
    return variable === undefined ? Either.right(`${name}:${weight}`) : Either.left(`${variable}=${weight}`)
  })
  return [...builtIn, ...(own.length > 0 ? [`EVENT_WEIGHTS=${own.join(",")}`] : [])].join(" ")
}

type Report = Effect.Effect.Success<ReturnType<typeof evaluateFile>>

const conclusion = ({ best, difference, says, setting, simple }: Report["verdict"]) => {
  const by = `NDCG ${difference.mean >= 0 ? "+" : ""}${difference.mean.toFixed(3)} [${difference.low.toFixed(3)}, ${difference.high.toFixed(3)}] on users not used for the choice`
  if (says === "simple")
    return [`A simple method wins: ${simple}. The best taste (${setting}) is behind it: ${by}.`]
  if (says === "undecided")
    return [
      `No clear winner between ${setting} and ${simple}: ${by}. Take the simple method, or predict more events (--most).`,
    ]
  const { again, history, lambda, mix, popularity, together, weights } = best
  return [
    `Taste wins: ${setting}, ahead of the best simple method, ${simple}: ${by}.`,
    `EMBEDDING_DECAY_LAMBDA=${lambda} EMBEDDING_HISTORY=${history} POPULARITY_WEIGHT=${popularity} TOGETHER_WEIGHT=${together} AGAIN_WEIGHT=${again}`,
    variablesOf(weights),
    ...(mix === "long"
      ? ["`long` is the stored vector alone, but recommendations always add the newest events."]
      : []),
  ]
}

/** The configured setting, except that a term counts nothing. */
const isWithoutTerm = ({ setting }: Report["rows"][number], rows: Report["rows"]) => {
  const configured = rows.find((row) => row.configured)?.setting
  return (
    setting !== null &&
    isDeepStrictEqual({ ...setting, together: 0, again: 0 }, { ...configured, together: 0, again: 0 })
  )
}

const human = (report: Report) => {
  const { foretold, interactions, products, rejected, rows, users, verdict } = report
  const settings = rows.filter(({ setting }) => setting !== null)
  const shown = new Set([...settings].sort((a, b) => b.ndcg.mean - a.ndcg.mean).slice(0, settingsShown))
  return [
    `${figure(interactions)} interactions (${figure(rejected)} unreadable), ${figure(products)} products; ${figure(foretold)} events of ${figure(users)} users predicted. At 10, with 95 % intervals:`,
    "",
    table(
      ["METHOD", "HIT RATE", "NDCG", "MRR"],
      rows
        .filter(
          (row) =>
            row.setting === null ||
            row.configured ||
            isWithoutTerm(row, rows) ||
            row.name === verdict.setting ||
            shown.has(row),
        )
        .sort((a, b) => b.ndcg.mean - a.ndcg.mean)
        .map((row) => [
          row.configured ? `${row.name} (configured)` : row.name,
          cell(row.hit_rate),
          cell(row.ndcg),
          cell(row.mrr),
        ]),
    ),
    "",
    ...conclusion(verdict),
  ].join("\n")
}

export const evaluate = command(
  "evaluate",
  "Finds the settings that would have recommended best what your users did next, and whether a simple method such as best-sellers does better",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription("A history, in the format of `import interactions`; nothing is recorded"),
    ),
    ...reading,
    products: maybe(
      Options.file("products", { exists: "yes" }),
      "Products, in the format of `products import`; default: the stored products",
    ),
    target: eventType(
      "target",
      "Predict only events of this type; default: all product events with a positive weight",
    ),
    most: Options.integer("most").pipe(
      Options.withDescription("Events to predict, drawn at random from the last fifth of the history"),
      Options.withDefault(1_000),
    ),
    unseen: flag("unseen", "Predict only products that are new to the user"),
    json,
  },
  ({ file, json, most, products, target, unseen, ...given }) =>
    Effect.flatMap(toReading(file, given), (reading) => {
      const run = <E, R>(catalogue: Effect.Effect<ReadonlyMap<string, Float32Array>, E, R>) =>
        measured(
          "interactions",
          (onRead) =>
            measured(
              "predicted",
              (onPredicted) =>
                evaluateFile(file, catalogue, {
                  reading,
                  type: Option.getOrUndefined(target),
                  most,
                  unseenOnly: unseen,
                  onRead,
                  onPredicted,
                }),
              () => undefined,
            ),
          ({ count, line = 1 }) =>
            `stopped at line ${figure(line)}, after ${figure(count)} interactions; run it again from the beginning`,
        ).pipe(Effect.flatMap((report) => print(json, report, human)))
      return Option.match(products, {
        onSome: (path) =>
          run(productsOfFile(path)).pipe(
            Effect.provide(Layer.provideMerge(Embedder.layerConfig, EmbeddingConfig.layerConfig)),
          ),
        onNone: () => Effect.provide(run(productsOfStack), Stack.layer),
      })
    }),
)
