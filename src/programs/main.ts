#!/usr/bin/env bun
/** The program `user-embeddings`: parses the command line and runs one command. */
import { Args, CliConfig, Command, Options, ValidationError } from "@effect/cli"
import type { Runtime } from "@effect/platform"
import { BunContext, BunRuntime } from "@effect/platform-bun"
import { Cause, ConfigError, Console, Effect, Exit, Layer, Option, Schema } from "effect"
import manifest from "../../package.json" with { type: "json" }
import * as Logging from "../layers/Logging.ts"
import * as OpenTelemetry from "../layers/OpenTelemetry.ts"
import * as Stack from "../layers/Stack.ts"
import * as EventVectors from "../services/EventVectors.ts"
import { UserId } from "../services/Interaction.ts"
import * as Api from "./Api.ts"
import { importProducts } from "./ImportProducts.ts"
import { print, table } from "./Output.ts"
import * as Provision from "./Provision.ts"
import * as Relay from "./Relay.ts"
import { showConfig } from "./ShowConfig.ts"
import { showUser } from "./ShowUser.ts"
import * as Up from "./Up.ts"
import * as Worker from "./Worker.ts"
import * as WorkerHealth from "./WorkerHealth.ts"

const json = Options.boolean("json").pipe(Options.withDescription("Print JSON on stdout"))

/** Runs a program layer until it is told to stop. */
const serve = <A, E>(
  name: string,
  description: string,
  layer: Layer.Layer<A, E, Stack.Ports | BunContext.BunContext>,
) =>
  Command.make(name, {}, () => Layer.launch(Layer.provide(layer, Stack.layer))).pipe(
    Command.withDescription(description),
  )

const up = serve(
  "up",
  "API, relay and worker in one process (embedded unless servers are configured)",
  Up.layer,
)
const api = serve("api", "The HTTP API, which also publishes and sweeps the outbox", Api.layer)
const worker = serve(
  "worker",
  "Folds interactions into embeddings; run as many as you like",
  WorkerHealth.layer.pipe(Layer.provideMerge(Worker.layer)),
)
const relay = serve("relay", "Publishes what is left in the outbox, for those who want it apart", Relay.layer)

const setup = Command.make(
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

const doctor = Command.make("doctor", { json }, ({ json }) =>
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

const config = Command.make("config", { json }, ({ json }) =>
  Effect.flatMap(showConfig, (rows) =>
    print(json, rows, (rows) =>
      table(
        ["VARIABLE", "VALUE", "FROM", "MEANING"],
        rows.map(({ from, meaning, value, variable }) => [variable, value ?? "-", from, meaning]),
      ),
    ),
  ),
).pipe(Command.withDescription("Shows every variable: value (secrets masked), origin, default, meaning"))

const productsImport = Command.make(
  "import",
  {
    file: Args.file({ name: "file", exists: "yes" }).pipe(
      Args.withDescription('JSON Lines: {"product_id","product_name","category","text"?,"vector"?}'),
    ),
    strict: Options.boolean("strict").pipe(Options.withDescription("Stop at the first bad line")),
    json,
  },
  ({ file, json, strict }) =>
    Effect.gen(function* () {
      const progress = (lines: number) =>
        process.stderr.isTTY ? Effect.sync(() => process.stderr.write(`\r${lines} lines`)) : Effect.void
      const report = yield* importProducts(file, {
        strict,
        progress: (lines) => Effect.asVoid(progress(lines)),
      })
      if (process.stderr.isTTY) yield* Console.error("")
      yield* print(json, report, ({ bad, created, imported }) =>
        [
          `${imported} products imported, ${created} of them new, ${bad.length} lines rejected`,
          ...bad.map(({ line, reason }) => `line ${line}: ${reason}`),
        ].join("\n"),
      )
      if (report.bad.length > 0)
        return yield* new Provision.Unhealthy({ message: `${report.bad.length} lines were rejected` })
    }).pipe(Effect.provide(Layer.provideMerge(EventVectors.layer, Stack.layer))),
).pipe(
  Command.withDescription("Stores product embeddings from a file, with vectors of its own or from texts"),
)

const products = Command.make("products").pipe(
  Command.withDescription("Product embeddings"),
  Command.withSubcommands([productsImport]),
)

const percent = (share: number) => `${(share * 100).toFixed(1)} %`

const userShow = Command.make(
  "show",
  { user: Args.text({ name: "user" }).pipe(Args.withSchema(Schema.typeSchema(UserId))), json },
  ({ json, user }) =>
    Effect.flatMap(showUser(user), (shown) =>
      print(json, shown, ({ events, nearest_products, metadata, ...facts }) =>
        [
          table(
            ["FIELD", "VALUE"],
            Object.entries({ ...facts, ...metadata }).map(([field, value]) => [field, String(value)]),
          ),
          table(
            ["OCCURRED AT", "EVENT", "WHAT", "SHARE"],
            events.map((event) => [
              event.occurred_at,
              event.event_type,
              event.reference ?? "",
              percent(event.share),
            ]),
          ),
          table(
            ["NEAREST PRODUCT", "NAME", "CATEGORY", "COSINE"],
            nearest_products.map(({ category, product_id, product_name, similarity }) => [
              product_id,
              product_name ?? "",
              category ?? "",
              similarity.toFixed(3),
            ]),
          ),
        ].join("\n\n"),
      ),
    ).pipe(Effect.provide(Stack.layer)),
).pipe(
  Command.withDescription("One user's embedding, the newest events with their share in it, nearest products"),
)

const user = Command.make("user").pipe(
  Command.withDescription("One user's embedding"),
  Command.withSubcommands([userShow]),
)

const program = Command.make("user-embeddings").pipe(
  Command.withDescription(manifest.description),
  Command.withSubcommands([up, api, worker, relay, setup, doctor, config, products, user]),
)

/** One line that says what is wrong; defects keep their trace. */
const report = (cause: Cause.Cause<unknown>) =>
  Option.match(Cause.failureOption(cause), {
    onNone: () => (Cause.isInterruptedOnly(cause) ? Effect.void : Console.error(Cause.pretty(cause))),
    onSome: (error) =>
      ValidationError.isValidationError(error)
        ? Effect.void
        : Console.error(
            `user-embeddings: ${error instanceof Error || ConfigError.isConfigError(error) ? error.message : String(error)}`,
          ),
  })

/** 0 done or stopped by a signal, 1 failed, 2 bad usage. */
const teardown: Runtime.Teardown = (exit, onExit) =>
  onExit(
    Exit.match(exit, {
      onSuccess: () => 0,
      onFailure: (cause) =>
        Cause.isInterruptedOnly(cause)
          ? 0
          : Option.exists(Cause.failureOption(cause), ValidationError.isValidationError)
            ? 2
            : 1,
    }),
  )

// The first signal drains and closes in order; the second leaves at once, and what is open is delivered again.
let signals = 0
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    signals += 1
    if (signals > 1) process.exit(130)
  })

Command.run(program, { name: "user-embeddings", version: manifest.version })(process.argv).pipe(
  Effect.tapErrorCause(report),
  Effect.provide(
    Layer.mergeAll(
      OpenTelemetry.layerConfig,
      CliConfig.layer({ showBuiltIns: false }),
      BunContext.layer,
    ).pipe(Layer.provideMerge(Logging.layerConfig(process.stderr.isTTY))),
  ),
  BunRuntime.runMain({ disableErrorReporting: true, disablePrettyLogger: true, teardown }),
)
