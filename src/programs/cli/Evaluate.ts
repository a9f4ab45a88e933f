/** `evaluate`: settings tried on a history. */
import { Args, Command, Options } from "@effect/cli"
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
import { eventType } from "./support/Usage.ts"

const settingsShown = 6

const cell = ({ high, low, mean }: Estimate) => `${mean.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`

/** The weights as variables. */
const variablesOf = (weights: Report["verdict"]["best"]["weights"]): string => {
  const variables = new Map<string, string>(builtInEventTypes.map(({ name, variable }) => [name, variable]))
  const [builtIn, own] = Arr.partitionMap(Object.entries(weights), ([name, weight]) => {
    const variable = variables.get(name)
    return variable === undefined ? Either.right(`${name}:${weight}`) : Either.left(`${variable}=${weight}`)
  })
  return [...builtIn, ...(own.length > 0 ? [`EVENT_WEIGHTS=${own.join(",")}`] : [])].join(" ")
}

type Report = Effect.Effect.Success<ReturnType<typeof evaluateFile>>

const conclusion = ({
  best,
  difference,
  says,
  setting,
  baselines,
}: Report["verdict"]): ReadonlyArray<string> => {
  const by = `NDCG ${difference.mean >= 0 ? "+" : ""}${difference.mean.toFixed(3)} [${difference.low.toFixed(3)}, ${difference.high.toFixed(3)}] on users it was not chosen on`
  if (says === "simple")
    return [`Something simpler wins: ${baselines}. The best vectors (${setting}) are behind it: ${by}.`]
  if (says === "undecided")
    return [
      `This history can't tell ${setting} from ${baselines}: ${by}. Take the simpler one, or try more history (--most).`,
    ]
  const { history, lambda, mix, popularity, weights } = best
  return [
    `Vectors win: ${setting}, ahead of the best simple way, ${baselines}: ${by}.`,
    `EMBEDDING_DECAY_LAMBDA=${lambda} EMBEDDING_HISTORY=${history} POPULARITY_WEIGHT=${popularity}`,
    variablesOf(weights),
    ...(mix === "long"
      ? ["Long memory alone is the stored vector; recommendations always mix short memory in."]
      : []),
  ]
}

const human = (report: Report) => {
  const { foretold, interactions, products, rejected, rows, users, verdict } = report
  const settings = rows.filter(({ setting }) => setting !== null)
  const shown = new Set([...settings].sort((a, b) => b.ndcg.mean - a.ndcg.mean).slice(0, settingsShown))
  return [
    `${figure(interactions)} interactions (${figure(rejected)} unreadable), ${figure(products)} products; foretold: ${figure(foretold)} of ${figure(users)} users. At 10, with 95 % intervals:`,
    "",
    table(
      ["WAY", "HIT RATE", "NDCG", "MRR"],
      rows
        .filter(
          (row) => row.setting === null || row.configured || row.name === verdict.setting || shown.has(row),
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

export const evaluate = Command.make(
  "evaluate",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription("History, as `import interactions` reads it; nothing is recorded"),
    ),
    ...reading,
    products: Options.file("products", { exists: "yes" }).pipe(
      Options.withDescription(
        "Products, as `products import` reads them; default: those of the configured stack",
      ),
      Options.optional,
    ),
    target: eventType("target", "Only this type of event is predicted; default: all product events").pipe(
      Options.optional,
    ),
    most: Options.integer("most").pipe(
      Options.withDescription("Events foretold, drawn from the last fifth of the history"),
      Options.withDefault(1_000),
    ),
    unseen: Options.boolean("unseen").pipe(
      Options.withDescription("Only products that are new to the user: no repetitions"),
    ),
    json,
  },
  ({ file, json, most, products, target, unseen, ...given }) => {
    const run = <E, R>(catalogue: Effect.Effect<ReadonlyMap<string, Float32Array>, E, R>) =>
      measured("interactions", (reads) =>
        measured("foretold", (foretells) =>
          evaluateFile(file, catalogue, {
            reading: toReading(file, given),
            type: Option.getOrUndefined(target),
            most,
            unseenOnly: unseen,
            reads,
            foretells,
          }),
        ),
      ).pipe(Effect.flatMap((report) => print(json, report, human)))
    return Option.match(products, {
      onSome: (path) =>
        run(productsOfFile(path)).pipe(
          Effect.provide(Layer.provideMerge(Embedder.layerConfig, EmbeddingConfig.layerConfig)),
        ),
      onNone: () => Effect.provide(run(productsOfStack), Stack.layer),
    })
  },
).pipe(
  Command.withDescription(
    "Which settings would have foretold a history, and whether something simpler would have done better",
  ),
)
