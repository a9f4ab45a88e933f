import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import { Catalogue, type Search } from "../../../src/services/recommend/Catalogue.ts"
import { warmUp } from "../../../src/services/recommend/WarmUp.ts"
import { effectTest } from "../../support/effect.ts"

const searchesOf = Effect.fnUntraced(function* (count: number) {
  const searched: Array<Search> = []
  const catalogue = Layer.mock(Catalogue, {
    space: "test",
    products: Effect.succeed(
      Array.from({ length: count }, (_, n) => ({
        product_id: `p-${n}`,
        product_name: null,
        category: null,
        available: true,
        attributes: {},
      })),
    ),
    centred: () => Effect.succeed(new Float32Array(4)),
    search: (_, search) =>
      Effect.sync(() => {
        searched.push(search)
        return []
      }),
  })
  yield* Effect.flatMap(Catalogue, (found) => warmUp(found, Effect.succeed({ of: () => 0.1 }))).pipe(
    Effect.provide(catalogue),
  )
  return searched
})

effectTest("a large catalogue is searched with and without bonuses after a start, a small one not", () =>
  Effect.gen(function* () {
    expect(yield* searchesOf(1_000)).toEqual([])
    const searches = yield* searchesOf(10_000)
    expect(
      [true, false].map((is) => searches.filter(({ bonus }) => (bonus !== undefined) === is).length),
    ).toEqual([60, 60])
  }),
)
