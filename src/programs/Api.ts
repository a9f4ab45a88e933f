/** The HTTP API. It records, publishes right after the commit, and drains the outbox. */
import {
  HttpApiBuilder,
  HttpApiSwagger,
  HttpMiddleware,
  HttpServer,
  HttpServerResponse,
  OpenApi,
} from "@effect/platform"
import { Effect, Layer, Option } from "effect"
import * as HttpHandlers from "../layers/http/HttpHandlers.ts"
import * as ApiMiddleware from "../layers/http/HttpMiddleware.ts"
import * as HttpPage from "../layers/http/HttpPage.ts"
import * as BunServer from "../layers/http/HttpServer.ts"
import * as RecordingRoutes from "../layers/http/RecordingRoutes.ts"
import { withEventTypes } from "../services/api/ApiDocument.ts"
import { api } from "../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import * as Eraser from "../services/operate/Eraser.ts"
import * as ErasureSweep from "../services/operate/ErasureSweep.ts"
import * as Gauges from "../services/operate/Gauges.ts"
import * as History from "../services/operate/History.ts"
import * as Catalogue from "../services/recommend/Catalogue.ts"
import * as PairCounter from "../services/recommend/PairCounter.ts"
import * as Popularity from "../services/recommend/Popularity.ts"
import * as Recommender from "../services/recommend/Recommender.ts"
import * as InteractionRecorder from "../services/record/InteractionRecorder.ts"
import * as OutboxRelay from "../services/record/OutboxRelay.ts"
import * as Settings from "../services/Settings.ts"
import * as EventVectors from "../services/update/EventVectors.ts"
import { greet } from "./Greeting.ts"

const recommending = Recommender.layer.pipe(
  Layer.provide(Popularity.layer),
  Layer.provideMerge(Catalogue.layer),
  Layer.provideMerge(EventVectors.layer),
)
const erasing = Layer.merge(Layer.provide(Eraser.layer, EventVectors.layer), ErasureSweep.sweeping)
const steps = Layer.mergeAll(
  InteractionRecorder.layer,
  OutboxRelay.draining,
  recommending,
  erasing,
  PairCounter.counting,
).pipe(Layer.provide(OutboxRelay.layer))

const server = Layer.unwrapEffect(
  Effect.gen(function* () {
    const port = yield* Settings.API_PORT
    const hasTokens = Option.isSome(yield* Settings.API_TOKENS)
    const hostname = Option.getOrElse(yield* Settings.API_HOST, () => (hasTokens ? "0.0.0.0" : "127.0.0.1"))
    return BunServer.layer({ port, hostname, idle: yield* Settings.API_IDLE_TIMEOUT })
  }),
)

/** The document of the API, with the event types of this program. */
const openApiDocument = HttpApiBuilder.Router.use((router) =>
  Effect.gen(function* () {
    const { eventTypes } = yield* EmbeddingConfig
    const response = HttpServerResponse.unsafeJson(withEventTypes(OpenApi.fromApi(api), eventTypes))
    yield* router.get("/openapi.json", Effect.succeed(response))
  }),
)

/** Where the API listens, and a URL that reaches it from this machine. */
export const listensOn = ({ hostname, port }: Pick<HttpServer.TcpAddress, "hostname" | "port">) => {
  const reached = hostname === "0.0.0.0" ? "127.0.0.1" : hostname === "::" ? "::1" : hostname
  const withPort = (host: string) => `${host.includes(":") ? `[${host}]` : host}:${port}`
  return { address: withPort(hostname), url: `http://${withPort(reached)}` }
}

/** Writes the address and a command to try to stderr. */
const greeting = HttpServer.addressWith((address) =>
  Effect.gen(function* () {
    if (address._tag !== "TcpAddress") return
    const listens = listensOn(address)
    const { url } = listens
    yield* Effect.logInfo("api.listening").pipe(Effect.annotateLogs({ ...listens, docs: `${url}/docs` }))
    yield* greet(url)
  }),
)

const serving = Layer.effectDiscard(greeting).pipe(
  Layer.provideMerge(HttpApiBuilder.serve()),
  Layer.provide(RecordingRoutes.directHandler),
  Layer.provide([ApiMiddleware.layer, ApiMiddleware.routerConfig]),
  // ApiMiddleware makes the server spans.
  HttpMiddleware.withTracerDisabledWhen(() => true),
)

export const layer = serving.pipe(
  Layer.provide([openApiDocument, HttpApiSwagger.layer({ path: "/docs" }), HttpPage.layer]),
  Layer.provide(HttpHandlers.layer),
  Layer.provide(RecordingRoutes.layer),
  Layer.provide(steps),
  Layer.provide(History.layer),
  Layer.provide(HttpServer.layerContext),
  Layer.provideMerge(server),
  Layer.merge(Gauges.ownProcess),
)
