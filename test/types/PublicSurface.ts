/** Checks the public types. `tsc` compiles this file; nothing runs it. */
import type { Effect } from "effect"
import type {
  Client,
  connect,
  EventVectors,
  Interaction,
  NewInteraction,
  Options,
  open,
  PromiseClient,
  Recommender,
  Recorded,
  Services,
  UserEmbedding,
} from "user-embeddings"

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
type Accepts<Wide, Given> = [Given] extends [Wide] ? true : false
/** Compiles only when every claim is true. */
export const claims = <_True extends ReadonlyArray<true>>() => undefined
type Not<Claim extends boolean> = Claim extends true ? false : true

type Awaits<Name extends keyof Client> = Client[Name] extends (...args: never) => Promise<infer A> ? A : never

claims<
  [
    // The promise client.
    Equal<ReturnType<typeof open>, Promise<Client>>,
    Equal<Awaits<"record">, Recorded>,
    Equal<Awaits<"recordAll">, ReadonlyArray<Recorded>>,
    Equal<Awaits<"embedding">, UserEmbedding.UserEmbedding | null>,
    Equal<Awaits<"recommend">, Recommender.Recommendations>,
    // Options: only variables by their name.
    Accepts<Options, { stack: "embedded"; DATA_DIR: string; EMBEDDING_DIMENSIONS: number }>,
    Accepts<Options, { stack: "external"; MYSQL_URL: string; worker: true }>,
    Not<Accepts<Options, { stack: "other" }>>,
    Not<Accepts<Options, { DATA_DIR: string }>>,
    Equal<"MONGODB_URL" extends keyof Options ? true : false, true>,
    Equal<"toEnvExample" extends keyof Options ? true : false, false>,
    // Interactions: a search phrase or a product, never both.
    Accepts<NewInteraction, { user_id: 7; event_type: "search"; search_phrase: "tent" }>,
    Accepts<
      NewInteraction,
      { user_id: "u"; event_type: "product_view"; product_id: 9; metadata: { device: "tv" } }
    >,
    Accepts<NewInteraction, { user_id: "u"; event_type: "add_to_cart"; product_id: "p" }>,
    Not<Accepts<NewInteraction, { user_id: "u"; event_type: "search" }>>,
    Not<Accepts<NewInteraction, { user_id: "u"; event_type: "product_view"; search_phrase: "tent" }>>,
    Not<Accepts<NewInteraction, { event_type: "search"; search_phrase: "tent" }>>,
    // Effect programs may use the services of the client and no others.
    Accepts<Parameters<Client["run"]>[0], Effect.Effect<number, never, EventVectors.EventVectors>>,
    Not<Accepts<Services, "something else">>,
  ]
>()

// The HTTP client follows the definition of the API.
type Api = PromiseClient
type Answer<Method> = Method extends (...args: never) => Promise<infer A> ? A : never
claims<
  [
    Equal<ReturnType<typeof connect>, PromiseClient>,
    Equal<Answer<Api["interactions"]["view"]>["event_type"], Interaction.EventType>,
    Equal<Answer<Api["interactions"]["bulk"]>["accepted"], number>,
    Equal<Answer<Api["recommendations"]["recommend"]>["source"], "taste" | "popular">,
    Equal<Answer<Api["health"]["livez"]>["status"], "ok">,
    Accepts<
      Parameters<Api["interactions"]["purchase"]>[0],
      { path: { userId: string; productId: string }; payload: { price: number } }
    >,
    Not<
      Accepts<Parameters<Api["interactions"]["purchase"]>[0], { path: { userId: string }; payload: object }>
    >,
    // What HTTP does not demand may be left out.
    Accepts<Parameters<Api["recommendations"]["recommend"]>[0], { path: { userId: string } }>,
    Accepts<
      Parameters<Api["recommendations"]["recommend"]>[0],
      { path: { userId: string }; urlParams: { limit: 3 } }
    >,
    Accepts<
      Parameters<Api["recommendations"]["recommendAmong"]>[0],
      { path: { userId: string }; payload: { filter: { brand: "Acme" } } }
    >,
    Accepts<Parameters<Api["operations"]["deadLetters"]>, []>,
    Not<Accepts<Parameters<Api["recommendations"]["recommend"]>[0], { urlParams: { limit: 3 } }>>,
  ]
>()
