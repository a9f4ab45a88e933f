/**
 * Made-up interactions of a shop, repeatable by a seed. A few users, products and phrases occur most (Zipf), and users
 * view more often than they buy.
 */
import { PCGRandom } from "effect/Utils"
import { type EventTypeDefinition, isPhraseEventType } from "../model/EventTypes.ts"
import * as Interaction from "../model/Interaction.ts"

export interface LoadModel {
  readonly users: number
  /** On average. */
  readonly eventsPerUser: number
  readonly seed: number
  /** At least one, in any order. */
  readonly products: ReadonlyArray<Interaction.ProductId>
  /** Each type occurs by its `loadShare`. */
  readonly types: ReadonlyArray<EventTypeDefinition>
  /** `occurred_at` of the first interaction in Unix ms; each next one is a millisecond later. */
  readonly start: number
}

export const phrases: ReadonlyArray<string> = `
wireless headphones|running shoes|coffee grinder|gift for dad|yoga mat|board games|red wine|tent for two
waterproof jacket|phone case|cast iron pan|baby blanket|garden hose|desk lamp|espresso beans|winter boots
mystery novel|cordless drill|dog bed|protein powder|bluetooth speaker|picture frame|cat toys|office chair
sunglasses|vegan chocolate|camping stove|bike lights|guitar strings|wool socks|travel backpack|kitchen knife
face cream|led strip|puzzle 1000 pieces|lego castle|usb c cable|something warm for cold evenings
cheap laptop|hiking poles|Kaffeemühle|crème brûlée torch`
  .trim()
  .split(/[|\n]/)

/** Draws index k with a weight of 1/(k + 1). */
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

/** Fisher–Yates; without it the first product ids would be the most popular. */
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

/** In the order in which they occur; the same model gives the same interactions. */
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
