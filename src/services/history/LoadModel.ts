/**
 * Made-up interactions of a shop, repeatable by their seed: few users do most, few products and phrases are wanted
 * most (Zipf), and people look more often than they buy.
 */
import { PCGRandom } from "effect/Utils"
import { type EventTypeDefinition, isPhraseEventType } from "../model/EventTypes.ts"
import * as Interaction from "../model/Interaction.ts"

export interface LoadModel {
  readonly users: number
  /** Of a user on average. */
  readonly eventsPerUser: number
  readonly seed: number
  /** At least one, in any order. */
  readonly products: ReadonlyArray<Interaction.ProductId>
  /** Each type occurs by its `loadShare`. */
  readonly types: ReadonlyArray<EventTypeDefinition>
  /** `occurred_at` of the first in Unix ms; each following one is a millisecond later. */
  readonly start: number
}

export const phrases: ReadonlyArray<string> = [
  ..."wireless headphones|running shoes|coffee grinder|gift for dad|yoga mat|board games|red wine|tent for two".split(
    "|",
  ),
  ..."waterproof jacket|phone case|cast iron pan|baby blanket|garden hose|desk lamp|espresso beans|winter boots".split(
    "|",
  ),
  ..."mystery novel|cordless drill|dog bed|protein powder|bluetooth speaker|picture frame|cat toys".split(
    "|",
  ),
  ..."office chair|sunglasses|vegan chocolate|camping stove|bike lights|guitar strings|wool socks".split("|"),
  ..."travel backpack|kitchen knife|face cream|led strip|puzzle 1000 pieces|lego castle|usb c cable".split(
    "|",
  ),
  ..."something warm for cold evenings|cheap laptop|hiking poles|Kaffeemühle|crème brûlée torch".split("|"),
]

/** Picks index k with a weight of 1/(k + 1). */
const zipf = (size: number) => {
  const sums = new Float64Array(size)
  let sum = 0
  for (let k = 0; k < size; k++) {
    sum += 1 / (k + 1)
    sums[k] = sum
  }
  return (random: PCGRandom): number => {
    const wanted = random.number() * sum
    let [low, high] = [0, size - 1]
    while (low < high) {
      const middle = (low + high) >> 1
      if (sums[middle]! > wanted) high = middle
      else low = middle + 1
    }
    return low
  }
}

/** Fisher–Yates, so that not the first ids are the favourites. */
const shuffled = <A>(all: ReadonlyArray<A>, random: PCGRandom): ReadonlyArray<A> => {
  const mixed = [...all]
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = random.integer(i + 1)
    const one = mixed[i]!
    mixed[i] = mixed[j]!
    mixed[j] = one
  }
  return mixed
}

/** Picks a type by its share; `random` is from 0 to 1. */
const pickType = (types: LoadModel["types"], random: number): string => {
  let left = random * types.reduce((sum, { loadShare }) => sum + loadShare, 0)
  for (const { loadShare, name } of types) {
    left -= loadShare
    if (left < 0) return name
  }
  return types.at(-1)!.name
}

/** The same model gives the same interactions, in the order in which they occur. */
export const interactions = (model: LoadModel): ReadonlyArray<Interaction.Interaction> => {
  const random = new PCGRandom(model.seed)
  const products = shuffled(model.products.toSorted(), random)
  const pickUser = zipf(model.users)
  const pickProduct = zipf(products.length)
  const pickPhrase = zipf(phrases.length)
  return Array.from({ length: model.users * model.eventsPerUser }, (_, index) => {
    const facts = {
      user_id: `generated-${pickUser(random) + 1}`,
      occurred_at: new Date(model.start + index).toISOString(),
      metadata: { device: random.number() < 0.6 ? "mobile" : "desktop", channel: "generated" },
    }
    const event_type = pickType(model.types, random.number())
    return isPhraseEventType(event_type)
      ? Interaction.make({ ...facts, event_type, search_phrase: phrases[pickPhrase(random)]! })
      : Interaction.make({ ...facts, event_type, product_id: products[pickProduct(random)]! })
  })
}
