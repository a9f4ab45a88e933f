/**
 * The table of event types: what a user can do, and how much each event counts. Schemas, routes, counters, settings, the
 * importer and the load generator derive from it. `EVENT_WEIGHTS` adds types of a shop's own and changes weights.
 */
import { Either } from "effect"

export interface EventTypeDefinition {
  /** `event_type` in rows, messages, files and the bulk route. */
  readonly name: string
  /** What an event of this type refers to: a search phrase, or a product by its id. */
  readonly kind: "phrase" | "product"
  /** Last word of the route that records it: `POST /api/user/{userId}/product/{productId}/{route}`. */
  readonly route: string
  /** Field of the user document's `metadata` that counts it. */
  readonly counter: `${string}_count`
  /** Weight in the fold. A negative weight moves the embedding away from the event's vector. */
  readonly weight: number
  /** Share among generated events, relative to the shares of the other types. */
  readonly loadShare: number
}

/** A built-in type: its weight has an environment variable of its own. */
interface BuiltInEventType extends EventTypeDefinition {
  readonly variable: string
}

export const builtInEventTypes = [
  {
    name: "search",
    kind: "phrase",
    route: "search",
    counter: "search_count",
    weight: 0.7,
    variable: "EMBEDDING_WEIGHT_SEARCH",
    loadShare: 0.2,
  },
  {
    name: "product_view",
    kind: "product",
    route: "view",
    counter: "view_count",
    weight: 0.3,
    variable: "EMBEDDING_WEIGHT_VIEW",
    loadShare: 0.55,
  },
  {
    name: "product_click",
    kind: "product",
    route: "click",
    counter: "click_count",
    weight: 0.5,
    variable: "EMBEDDING_WEIGHT_CLICK",
    loadShare: 0.18,
  },
  {
    name: "product_purchase",
    kind: "product",
    route: "purchase",
    counter: "purchase_count",
    weight: 1,
    variable: "EMBEDDING_WEIGHT_PURCHASE",
    loadShare: 0.07,
  },
] as const satisfies ReadonlyArray<BuiltInEventType>

type BuiltIn = (typeof builtInEventTypes)[number]
export type PhraseEventType = Extract<BuiltIn, { readonly kind: "phrase" }>["name"]
/** A built-in product type, or a name from `EVENT_WEIGHTS`. */
export type ProductEventType = Extract<BuiltIn, { readonly kind: "product" }>["name"] | (string & {})
export type EventType = PhraseEventType | ProductEventType | ReferenceEventType

const isPhrase = (type: BuiltIn): type is Extract<BuiltIn, { readonly kind: "phrase" }> =>
  type.kind === "phrase"
/** Types of the kind phrase; all others refer to products. */
export const phraseEventTypes: ReadonlyArray<PhraseEventType> = builtInEventTypes
  .filter(isPhrase)
  .map(({ name }) => name)

export const namePattern = /^[a-z][a-z0-9_]{1,31}$/
const builtInByName: ReadonlyMap<string, BuiltIn> = new Map(
  builtInEventTypes.map((type) => [type.name, type]),
)
/** Types of interactions that change what others mean. They have a `reference`, and no weight. */
export const referenceEventTypes = ["retraction", "merge"] as const
export type ReferenceEventType = (typeof referenceEventTypes)[number]
const reservedNames: ReadonlySet<string> = new Set([
  ...builtInEventTypes.map(({ route }) => route),
  ...referenceEventTypes,
])

export const isReferenceEventType = (name: unknown): name is ReferenceEventType =>
  referenceEventTypes.some((type) => type === name)

export const isPhraseEventType = (name: unknown): name is PhraseEventType =>
  phraseEventTypes.some((phrase) => phrase === name)

/** Whether the name can be that of a product type, configured or not. Rows of a type that is no longer configured keep theirs. */
export const isProductEventType = (name: unknown): name is ProductEventType =>
  typeof name === "string" &&
  namePattern.test(name) &&
  (builtInByName.has(name) ? !isPhraseEventType(name) : !isReserved(name))

const isReserved = (name: string): boolean => reservedNames.has(name) || name.startsWith("product_")

/** The types that a program accepts. */
export interface EventTypes {
  readonly all: ReadonlyArray<EventTypeDefinition>
  readonly names: ReadonlyArray<string>
  /** Weight by name; no entry for a type that is not configured. */
  readonly weights: Readonly<Record<string, number>>
  readonly has: (name: string) => boolean
  readonly productRoutes: ReadonlyArray<string>
  /** The product type that a route ends with. */
  readonly ofRoute: (route: string) => EventTypeDefinition | undefined
}

/** Share among generated events of a type from `EVENT_WEIGHTS`. */
const ownLoadShare = 0.05

/** The built-in types with the given weights, and the types that only `weights` names. */
export const make = (weights: Readonly<Record<string, number>> = {}): EventTypes => {
  const own = Object.entries(weights).filter(([name]) => !builtInByName.has(name))
  const all: ReadonlyArray<EventTypeDefinition> = [
    ...builtInEventTypes.map((type) => ({ ...type, weight: weights[type.name] ?? type.weight })),
    ...own.map(([name, weight]) => ({
      name,
      kind: "product" as const,
      route: name,
      counter: `${name}_count` as const,
      weight,
      loadShare: ownLoadShare,
    })),
  ]
  const names = new Set(all.map(({ name }) => name))
  const byRoute = new Map(all.flatMap((type) => (type.kind === "product" ? [[type.route, type]] : [])))
  return {
    all,
    names: all.map(({ name }) => name),
    weights: Object.fromEntries(all.map(({ name, weight }) => [name, weight])),
    has: (name) => names.has(name),
    productRoutes: [...byRoute.keys()],
    ofRoute: (route) => byRoute.get(route),
  }
}

/** The built-in types with their default weights. */
export const defaults = make()

/** Field of `metadata` that counts events of a type, configured or not. */
export const counterOf = (type: EventType): `${string}_count` =>
  builtInByName.get(type)?.counter ?? `${type}_count`

/** Last word of the route that records events of a product type. */
export const routeOf = (type: EventType): string => builtInByName.get(type)?.route ?? type

/** The counters of the built-in types, all 0. */
export const zeroCounters: Readonly<Record<`${string}_count`, number>> = Object.fromEntries(
  builtInEventTypes.map(({ counter }) => [counter, 0]),
)

/** Reads `EVENT_WEIGHTS`, as `add_to_cart:0.8,dislike:-0.4`; the left side says what is wrong. */
export const parseWeights = (text: string): Either.Either<Readonly<Record<string, number>>, string> => {
  const weights: Record<string, number> = {}
  for (const entry of text.split(",").map((part) => part.trim())) {
    const [, name, digits] = /^([^:]*):(.*)$/.exec(entry) ?? []
    if (name === undefined || digits === undefined) return Either.left(`"${entry}" is not name:weight`)
    const problem = nameProblem(name) ?? weightProblem(digits)
    if (problem !== undefined) return Either.left(`${entry}: ${problem}`)
    const weight = Number(digits)
    if (Object.hasOwn(weights, name) && weights[name] !== weight)
      return Either.left(`${name} has two weights, ${weights[name]} and ${weight}`)
    weights[name] = weight
  }
  return Either.right(weights)
}

const nameProblem = (name: string): string | undefined => {
  if (builtInByName.has(name)) return undefined
  if (isReserved(name)) return `the name is reserved (${[...reservedNames].join(", ")} and product_… are)`
  return namePattern.test(name)
    ? undefined
    : "a name is 2 to 32 characters of a-z, 0-9 and _, and begins with a letter"
}

const weightProblem = (digits: string): string | undefined => {
  const weight = digits.trim() === "" ? Number.NaN : Number(digits)
  return Math.abs(weight) <= 1 && weight !== 0 ? undefined : "a weight is a number from -1 to 1, not 0"
}
