/**
 * A purchase is taken back in whatever order it, its refund and the merges that make their users one person arrive, also if
 * the process that records them is killed before it looks for the others.
 */
import { expect } from "bun:test"
import { Effect, Layer, Stream } from "effect"
import * as Worker from "../../../src/programs/Worker.ts"
import * as Interaction from "../../../src/services/model/Interaction.ts"
import * as Auditor from "../../../src/services/operate/Auditor.ts"
import * as Eraser from "../../../src/services/operate/Eraser.ts"
import { InteractionLog } from "../../../src/services/ports/InteractionLog.ts"
import type { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import type { InteractionRecorder } from "../../../src/services/record/InteractionRecorder.ts"
import * as OrderRefunds from "../../../src/services/record/OrderRefunds.ts"
import { OutboxRelay } from "../../../src/services/record/OutboxRelay.ts"
import { layerSuite } from "../../support/effect.ts"
import { drained, embeddingOf, record, recording, storeProduct } from "../../support/pipeline.ts"
import { withServers } from "../../support/servers.ts"
import { embedded, external } from "../../support/stacks.ts"

const permutations = <A>(all: ReadonlyArray<A>): ReadonlyArray<ReadonlyArray<A>> =>
  all.length === 0
    ? [[]]
    : all.flatMap((first, index) => permutations(all.toSpliced(index, 1)).map((rest) => [first, ...rest]))

type Act = "order" | "refund" | "merge" | "login"
const orders = permutations<Act>(["order", "refund", "merge", "login"])

/** A guest was another guest before, who logs in as a customer. Two of the three ids order and refund. */
interface Person {
  readonly acts: ReadonlyArray<Act>
  readonly ids: ReadonlyArray<string>
  readonly buyer: string
  readonly refunded: string
}
const between = [
  [0, 2],
  [2, 0],
  [1, 2],
  [0, 1],
] as const
const people = (name: string): ReadonlyArray<Person> =>
  orders.map((acts, index) => {
    const ids = ["older", "guest", "customer"].map((id) => `${name}-${index}-${id}`)
    const [buyer, refunded] = between[index % between.length]!
    return { acts, ids, buyer: ids[buyer]!, refunded: ids[refunded]! }
  })

const at = (minute: number) => new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString()
const interactionsOf = ({ buyer, ids: [older = "", guest = "", customer = ""] }: Person, act: Act) => {
  if (act === "merge") return [Interaction.merge(guest, older, at(1))]
  if (act === "login") return [Interaction.merge(customer, guest, at(2))]
  return ["tent", "lamp", "boots"].map((product_id, index) =>
    Interaction.make({
      user_id: buyer,
      event_type: "product_purchase",
      product_id,
      occurred_at: at(3),
      metadata: { order_id: index < 2 ? 7 : 8 },
    }),
  )
}

/** As Segment's API does it. */
const refund = Effect.fnUntraced(function* ({ refunded }: Person) {
  const found = yield* OrderRefunds.refund([{ user_id: refunded, order_id: "7", products: ["tent"] }])
  return yield* record(...found.flatMap(({ retractions }) => retractions))
})

const play = (person: Person, act: Act) =>
  act === "refund" ? refund(person) : record(...interactionsOf(person, act))

/** The process is killed after the commit. */
const playKilled = (person: Person, act: Act) =>
  act === "refund"
    ? refund(person)
    : Effect.flatMap(InteractionLog, (log) =>
        log.append(
          interactionsOf(person, act).map((interaction) => ({
            interaction,
            idempotencyKey: null,
            occurredAtGiven: true,
            trace: null,
            recordedAt: Date.now() - 60_000,
          })),
        ),
      )

const settled = Effect.zipRight(
  Effect.flatMap(OutboxRelay, ({ drain }) => drain),
  drained,
)

/** Each person has taken back the tent, and it alone. */
const expectTakenBack = Effect.fnUntraced(function* (all: ReadonlyArray<Person>) {
  const log = yield* InteractionLog
  for (const { acts, ids } of all) {
    const rows = Array.from(yield* Stream.runCollect(log.stream({ user: ids[0]! })))
    const retracted = rows.flatMap(({ interaction: { event_type, product_id } }) =>
      event_type === "retraction" ? [product_id] : [],
    )
    expect([acts, retracted]).toEqual([acts, ["tent"]])
    const embedding = yield* embeddingOf(ids[2]!)
    expect([embedding?.event_count, embedding?.metadata.purchase_count]).toEqual([2, 2])
  }
  expect(yield* (yield* Auditor.Auditor).audit({})).toMatchObject({ extra: 0, missing: 0, in_flight: 0 })
})

type Play = (all: ReadonlyArray<Person>) => Effect.Effect<unknown, unknown, Services>
type Services = InteractionLog | InteractionRecorder | InteractionQueue | OutboxRelay

const inSteps =
  (play: (person: Person, act: Act) => Effect.Effect<unknown, unknown, Services>): Play =>
  (all) =>
    Effect.forEach([0, 1, 2, 3], (step) =>
      Effect.zipRight(
        Effect.forEach(all, (person) => play(person, person.acts[step]!), { concurrency: 8 }),
        settled,
      ),
    )
const atOnce: Play = (all) =>
  Effect.zipRight(
    Effect.forEach(
      all.flatMap((person) => person.acts.map((act) => [person, act] as const)),
      ([person, act]) => play(person, act),
      { concurrency: "unbounded" },
    ),
    settled,
  )

const plays: ReadonlyArray<readonly [string, Play]> = [
  ["one after the other", inSteps(play)],
  ["one after the other, and the process is killed each time", inSteps(playKilled)],
  ["all at the same time", atOnce],
]

/** The user is erased while a merge is looked at, after its purchases are found. */
const takeBackDuringErasure = Effect.fnUntraced(function* (guest: string, customer: string) {
  const log = yield* InteractionLog
  const { erase } = yield* Eraser.Eraser
  const entries = [
    Interaction.make({
      user_id: customer,
      event_type: "product_purchase",
      product_id: "tent",
      occurred_at: at(3),
      metadata: { order_id: 7 },
    }),
    Interaction.merge(customer, guest, at(2)),
  ].map((interaction) => ({
    interaction,
    idempotencyKey: null,
    occurredAtGiven: true,
    trace: null,
    recordedAt: Date.now(),
  }))
  yield* log.noteRefunds([{ user_id: guest, order_id: "7", products: [] }])
  const answers = yield* log.append(entries)
  const rows = entries.map((entry, index) => {
    const answer = answers[index]!
    if (answer._tag !== "Recorded") throw new Error(answer._tag)
    return { ...entry, id: answer.id }
  })
  const purchases: typeof log.pruned.purchases = (...request) =>
    Effect.zipRight(Effect.orDie(erase(customer)), log.pruned.purchases(...request))
  return yield* OrderRefunds.takeBackFor(rows).pipe(
    Effect.provideService(InteractionLog, { ...log, pruned: { ...log.pruned, purchases } }),
  )
})

/** Plays a part of the orders: one of `every`. */
const suite = (name: string, stack: ReturnType<typeof embedded>, every: number) =>
  layerSuite(
    name,
    Layer.mergeAll(Auditor.layer, Eraser.layer, Worker.layer).pipe(Layer.provideMerge(recording(stack))),
    (it) => {
      for (const [index, [title, run]] of plays.entries())
        it(
          title,
          () =>
            Effect.gen(function* () {
              for (const id of ["tent", "lamp", "boots"]) yield* storeProduct(id, `a ${id}`)
              const all = people(`test-${index}`).filter((_, place) => place % every === index % every)
              yield* run(all)
              yield* expectTakenBack(all)
            }),
          60_000,
        )
      it("many refunds of one user read the purchases once, and those without a purchase wait", () =>
        Effect.gen(function* () {
          const log = yield* InteractionLog
          const buyer = { acts: [], ids: [], buyer: "many", refunded: "many" }
          yield* record(...interactionsOf(buyer, "order"))
          let reads = 0
          const stream: typeof log.stream = (filter) => {
            reads++
            return log.stream(filter)
          }
          const [found, ...others] = yield* OrderRefunds.refund([
            { user_id: "many", order_id: "7", products: ["lamp"] },
            { user_id: "many", order_id: "7", products: ["lamp", "boots"] },
            { user_id: "many", order_id: "7", products: ["boots"] },
            { user_id: "many", order_id: "8", products: [] },
            { user_id: "many", order_id: "9", products: [] },
          ]).pipe(Effect.provideService(InteractionLog, { ...log, stream }))
          expect([reads, others]).toEqual([1, []])
          expect(found).toMatchObject({ pruned: 0, prunedRefunds: 0, waiting: 2 })
          expect(found?.retractions.map(({ product_id }) => product_id).toSorted()).toEqual(["boots", "lamp"])
        }))
      it("nothing is taken back of a user who is erased meanwhile", () =>
        Effect.gen(function* () {
          expect(yield* takeBackDuringErasure("erased-guest", "erased-customer")).toEqual([])
          const log = yield* InteractionLog
          for (const user of ["erased-guest", "erased-customer"])
            expect(Array.from(yield* Stream.runCollect(log.stream({ user })))).toEqual([])
        }))
    },
  )

suite("refunds of orders, on the embedded stack", embedded(), 1)
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("refunds of orders", external(), 5),
)
