/**
 * The public surface. What is exported here keeps its meaning within a major version; everything else may change.
 * Three ways in, each with an example in `examples/` and a section in docs/library.md:
 *
 * 1. {@link open}: the whole system, or a client of it, in this process, behind promises.
 * 2. {@link connect}: a typed client of a running API, behind promises (`HttpClient.make`: the same as Effects).
 * 3. The services and layers, to build a program of one's own from them with Effect.
 */

// 1. Promises -----------------------------------------------------------------------------------------------

export {
  type Client,
  type Embedder as EmbedFunction,
  InvalidInput,
  KeyReused,
  type NewInteraction,
  type NewProduct,
  type Options,
  open,
  type Recorded,
  type Services,
  StillWaiting,
  type Variables,
} from "./programs/Open.ts"

// 2. HTTP ---------------------------------------------------------------------------------------------------

export * as HttpClient from "./layers/HttpClient.ts"
export { connect, type Failure, type PromiseClient } from "./layers/HttpClient.ts"
/** The definition of the HTTP API (`HttpApi` of @effect/platform). */
export { api } from "./services/InteractionApi.ts"
/** What a request is refused with: RFC 9457. */
export { Problem } from "./services/Problem.ts"

// 3. Effect -------------------------------------------------------------------------------------------------

export * as Embedder from "./layers/Embedder.ts"
export * as Stack from "./layers/Stack.ts"
export * as StackEmbedded from "./layers/StackEmbedded.ts"
export * as StackExternal from "./layers/StackExternal.ts"
// Stacks and programs: ports on technology, steps put together.
export * as Provision from "./programs/Provision.ts"
export * as Relay from "./programs/Relay.ts"
export * as Worker from "./programs/Worker.ts"
// Steps: what happens between the ports.
export * as Catalogue from "./services/Catalogue.ts"
// Ports: replace any by one of your own.
export * as DeadLetters from "./services/DeadLetters.ts"
export * as Dependencies from "./services/Dependencies.ts"
export * as EmbeddingConfig from "./services/EmbeddingConfig.ts"
export * as EmbeddingUpdater from "./services/EmbeddingUpdater.ts"
export * as EmbeddingWorker from "./services/EmbeddingWorker.ts"
export * as EventVectors from "./services/EventVectors.ts"
// The model: pure, without Effect.
export * as Interaction from "./services/Interaction.ts"
export * as InteractionLog from "./services/InteractionLog.ts"
export * as InteractionQueue from "./services/InteractionQueue.ts"
export * as InteractionRecorder from "./services/InteractionRecorder.ts"
export * as OutboxRelay from "./services/OutboxRelay.ts"
export * as PhraseEmbedder from "./services/PhraseEmbedder.ts"
export * as PhraseEmbeddings from "./services/PhraseEmbeddings.ts"
export * as Popularity from "./services/Popularity.ts"
export * as ProductEmbeddings from "./services/ProductEmbeddings.ts"
export * as Recommender from "./services/Recommender.ts"
export * as Taste from "./services/Taste.ts"
export * as UserEmbedding from "./services/UserEmbedding.ts"
export * as UserEmbeddings from "./services/UserEmbeddings.ts"
export * as Vector from "./services/Vector.ts"
