/**
 * The public API. Exports of this file stay compatible within a major version; everything else may change.
 * There are three ways to use it. `examples/` has an example of each, and docs/library.md a section:
 *
 * 1. {@link open}: the whole system, or a client of it, in this process, with promises.
 * 2. {@link connect}: a typed client of a running API, with promises (`HttpClient.make`: with Effect).
 * 3. The services and layers, to build your own program with Effect.
 */

// 1. Promises -----------------------------------------------------------------------------------------------

export {
  BadConfiguration,
  type Client,
  Closed,
  type Embedder as EmbedFunction,
  InvalidInput,
  KeyReused,
  MergeRefused,
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

export * as HttpClient from "./layers/http/HttpClient.ts"
export { connect, type Failure, type PromiseClient, UnexpectedAnswer } from "./layers/http/HttpClient.ts"
/** The definition of the HTTP API (`HttpApi` of @effect/platform). */
export { api } from "./services/api/InteractionApi.ts"
/** The failure of a request (RFC 9457). */
export { Problem } from "./services/model/Problem.ts"

// 3. Effect -------------------------------------------------------------------------------------------------

export * as Embedder from "./layers/embedder/Embedder.ts"
export * as Stack from "./layers/Stack.ts"
export * as StackEmbedded from "./layers/StackEmbedded.ts"
export * as StackExternal from "./layers/StackExternal.ts"
export * as Relay from "./programs/Relay.ts"
// Stacks and programs: ports with their technology, and steps.
export * as Provision from "./programs/tasks/ProvisionServers.ts"
export * as Worker from "./programs/Worker.ts"
export * as EmbeddingConfig from "./services/EmbeddingConfig.ts"
// The model: pure, without Effect.
export * as EmbeddingChange from "./services/model/EmbeddingChange.ts"
export * as Fold from "./services/model/Fold.ts"
export * as Interaction from "./services/model/Interaction.ts"
export * as Taste from "./services/model/Taste.ts"
export * as UserEmbedding from "./services/model/UserEmbedding.ts"
export * as Vector from "./services/model/Vector.ts"
// Ports: each can be replaced by your own implementation.
export * as DeadLetters from "./services/ports/DeadLetters.ts"
export * as Dependencies from "./services/ports/Dependencies.ts"
export * as EmbeddingFeed from "./services/ports/EmbeddingFeed.ts"
export * as EmbeddingSink from "./services/ports/EmbeddingSink.ts"
export * as InteractionLog from "./services/ports/InteractionLog.ts"
export * as InteractionQueue from "./services/ports/InteractionQueue.ts"
export * as PhraseEmbedder from "./services/ports/PhraseEmbedder.ts"
export * as PhraseEmbeddings from "./services/ports/PhraseEmbeddings.ts"
export * as ProductEmbeddings from "./services/ports/ProductEmbeddings.ts"
export * as UserEmbeddings from "./services/ports/UserEmbeddings.ts"
// Steps between the ports.
export * as Catalogue from "./services/recommend/Catalogue.ts"
export * as EmbeddingReads from "./services/recommend/EmbeddingReads.ts"
export * as Popularity from "./services/recommend/Popularity.ts"
export * as Recommender from "./services/recommend/Recommender.ts"
export * as InteractionRecorder from "./services/record/InteractionRecorder.ts"
export * as OutboxRelay from "./services/record/OutboxRelay.ts"
export * as EmbeddingUpdater from "./services/update/EmbeddingUpdater.ts"
export * as EmbeddingWorker from "./services/update/EmbeddingWorker.ts"
export * as EventVectors from "./services/update/EventVectors.ts"
