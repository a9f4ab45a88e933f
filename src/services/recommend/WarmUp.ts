/**
 * The first searches of a large catalogue take several times as long: code is compiled, and the bonuses are computed. They
 * run right after the catalogue is loaded, so that no user waits for them.
 */
import { Effect, Schedule } from "effect"
import type { Catalogue } from "./Catalogue.ts"
import type { Bonus } from "./CatalogueSearch.ts"

/** A smaller catalogue has no codes, or takes few milliseconds. */
const fewestProducts = 10_000
const searches = 120
/** A caller waits 10 s for a catalogue, and a large one may take longer to load. */
const untilLoaded = Schedule.intersect(Schedule.spaced("5 seconds"), Schedule.recurs(60))

export const warmUp = Effect.fnUntraced(function* <E>(
  catalogue: Catalogue["Type"],
  bonusOf: Effect.Effect<Bonus, E>,
) {
  const products = yield* Effect.retry(catalogue.products, untilLoaded)
  if (products === undefined || products.length < fewestProducts) return
  const bonus = yield* bonusOf
  for (let n = 0; n < searches; n++) {
    const { product_id } = products[Math.floor((n / searches) * products.length)]!
    const direction = yield* catalogue.centred(product_id)
    if (direction !== undefined)
      yield* catalogue.search(direction, n % 2 === 0 ? { limit: 100, bonus } : { limit: 10 })
  }
}, Effect.ignore)
