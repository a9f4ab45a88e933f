/**
 * Users are erased at random moments: while a worker waits for the embedder, while an INSERT waits for a lock, while dead
 * letters are read, and while the relay publishes. Afterwards nothing is left of what was answered before the erasure, and
 * all that was answered after it counts.
 */
import { expect } from "bun:test"
import * as Interaction from "../../src/services/model/Interaction.ts"
import { phraseKey } from "../../src/services/ports/PhraseEmbeddings.ts"
import { openAiStandIn } from "../support/openAiStandIn.ts"
import { until } from "./Program.ts"
import { happenings, type Item, randomness } from "./Shop.ts"
import { consuming, heavyFailures, inForm, type System } from "./System.ts"

let serial = 0
/** A new event of the user. Each search has a phrase of its own. */
const event = (user_id: string, kind: "search" | "product_view", phrase = ""): Item => {
  const number = serial++
  const occurred_at = new Date(Date.now() - 3_600_000 - number).toISOString()
  return kind === "search"
    ? {
        user_id,
        event_type: kind,
        search_phrase: `${phrase || "phrase"} of ${user_id}, ${number}`,
        occurred_at,
      }
    : { user_id, event_type: kind, product_id: `p-${number % 24}`, occurred_at }
}
const events = (user: string, searches: number, views: number): ReadonlyArray<Item> => [
  ...Array.from({ length: searches }, () => event(user, "search")),
  ...Array.from({ length: views }, () => event(user, "product_view")),
]
const interactionOf = ({ event_type, occurred_at, product_id = "", search_phrase = "", user_id }: Item) => {
  const common = { user_id, occurred_at, metadata: {} }
  return event_type === "search"
    ? Interaction.make({ ...common, event_type, search_phrase })
    : Interaction.make({ ...common, event_type, product_id })
}
const idOf = (item: Item): string => interactionOf(item).message_id

const insertRow = (item: Item, user: string) => {
  const { event_type, message_id, occurred_at, product_id, search_phrase } = interactionOf(item)
  const at = occurred_at.slice(0, 23).replace("T", " ")
  return {
    sql: `INSERT INTO user_interactions
      (message_id, user_id, event_type, search_phrase, product_id, occurred_at, metadata, created_at)
      VALUES (?, ?, ?, ?, ?, ?, '{}', UTC_TIMESTAMP(3) - INTERVAL 1 MINUTE)`,
    values: [message_id, user, event_type, search_phrase, product_id, at],
  }
}

/** What must be true of one user in the end. */
class ErasedUser {
  readonly counts = new Map<string, Item>()
  readonly gone = new Map<string, Item>()

  constructor(
    readonly id: string,
    private readonly recording: string,
    private readonly erasing: string,
  ) {}

  /** The API has answered these items with success. */
  answered(items: ReadonlyArray<Item>) {
    for (const item of items) {
      this.counts.set(idOf(item), item)
      this.gone.delete(idOf(item))
    }
  }

  /** Posts until the answer is no 503, as clients do: the ids are the same each time. */
  async post(items: ReadonlyArray<Item>): Promise<void> {
    const post = () =>
      fetch(`${this.recording}/api/interactions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(items),
      })
    const response = await until("an answer but 503", 30, async () => {
      const answer = await post()
      return answer.status === 503 ? undefined : answer
    })
    const { results } = (await response.json()) as { results: ReadonlyArray<{ status: string }> }
    expect([response.status, ...results.map(({ status }) => status)]).not.toContain("rejected")
    expect(response.status).toBe(200)
    this.answered(items)
  }

  async erase(): Promise<void> {
    for (const [id, item] of this.counts) this.gone.set(id, item)
    this.counts.clear()
    const erase = () => fetch(`${this.erasing}/api/user/${this.id}`, { method: "DELETE" })
    await until(`${this.id} is erased`, 30, async () => ((await erase()).status === 204 ? true : undefined))
  }
}

const pause = (random: () => number, most: number) => Bun.sleep(random() * most)

interface Round {
  readonly system: System
  readonly user: ErasedUser
  readonly random: () => number
  /** Makes the embedder refuse a phrase. */
  readonly refuse: (phrase: string) => void
}
type Moment = (round: Round) => Promise<void>
const moments: Record<string, Moment> = {
  "a worker waits for the embedder": async ({ random, user }) => {
    await user.post(events(user.id, 4, 4))
    await pause(random, 500)
    await user.erase()
  },
  "an INSERT waits for a lock": async ({ random, system, user }) => {
    await user.post(events(user.id, 1, 4))
    const waiting = events(user.id, 1, 5)
    const blocker = await system.pool.getConnection()
    try {
      await blocker.beginTransaction()
      const { sql, values } = insertRow(waiting[Math.floor(random() * waiting.length)]!, "blocker")
      await blocker.query(sql, values)
      const posted = user.post(waiting)
      await Bun.sleep(50 + random() * 300)
      await user.erase()
      await blocker.rollback()
      await posted
    } finally {
      blocker.release()
    }
  },
  "dead letters are read": async ({ random, refuse, system, user }) => {
    const refused = event(user.id, "search", "refused")
    refuse(refused.search_phrase!)
    await user.post([refused, ...events(user.id, 1, 2)])
    await pause(random, 800)
    const reading = system.deadLetters()
    await user.erase()
    await reading
  },
  "the relay publishes": async ({ random, system, user }) => {
    const rows = events(user.id, 2, 20)
    for (const item of rows) {
      const { sql, values } = insertRow(item, user.id)
      await system.pool.query(sql, values)
    }
    user.answered(rows)
    await pause(random, 1_200)
    await user.erase()
  },
}

/** The ids of a long history move to the ledger in the write that loses against the erasure. */
const longHistory: Moment = async ({ system, user }) => {
  const history = events(user.id, 0, 320)
  await user.post(history)
  await until("the history is applied", 30, async () =>
    (await system.collection.findOne({ user_id: user.id }))?.event_count === 320 ? true : undefined,
  )
  await user.post(events(user.id, 5, 0))
  await Bun.sleep(100)
  await user.erase()
  // Later events make the new record move ids to the ledger, where those of the history are then looked for.
  await user.post(events(user.id, 0, 330))
  await user.post(history)
}

heavyFailures("erasures", "programs", (scenario) => {
  const openAi = openAiStandIn({ latencyMs: 300 })
  const env = { OPENAI_API_KEY: "sk-stand-in", OPENAI_BASE_URL: openAi.url }
  scenario(
    "at random moments under load: nothing answered before is left, all that is answered after counts",
    async (system) => {
      const [rounds, lanes] = inForm([3, 4], [50, 4])
      const urls: Array<string> = []
      for (const _ of [1, 2]) {
        await system.api()
        urls.push(system.url)
      }
      await Promise.all(system.workers(2).map(consuming))
      const refuse = (phrase: string) => void openAi.faults.set(phrase, { status: 400 })
      const load = system.load(happenings(50, inForm(20, 400)!, "bystander"), 50)
      const names = Object.keys(moments)
      const lane = async (number: number) => {
        const random = randomness(number)
        const users: Array<ErasedUser> = []
        for (let round = 0; round < rounds!; round++) {
          const [recording, erasing] = random() < 0.5 ? urls : urls.toReversed()
          const user = new ErasedUser(`erased-${number}-${round}`, recording!, erasing!)
          users.push(user)
          const name = names[(number + round) % names.length]!
          await moments[name]!({ system, user, random, refuse })
          // The same events again, and new ones. Every third user does not come back.
          const again = [...user.gone.values()].filter(
            ({ search_phrase = "" }) => !openAi.faults.has(search_phrase),
          )
          if (round % 3 < 2) await user.post([...again.slice(0, 2), ...events(user.id, 1, 3)])
          system.say(`erased ${user.id} while ${name}`)
        }
        return users
      }
      const heavy = new ErasedUser("heavy", urls[0]!, urls[1]!)
      const users = (
        await Promise.all([
          ...Array.from({ length: lanes! }, (_, number) => lane(number)),
          longHistory({ system, user: heavy, random: Math.random, refuse }).then(() => [heavy]),
        ])
      ).flat()
      await load.stop()
      for (const { counts } of users) for (const id of counts.keys()) system.accepted.add(id)
      await system.settled(60)
      await system.proof()

      const rows = new Set((await system.rows()).map(({ message_id }) => message_id))
      const documents = new Map((await system.users()).map((document) => [document.user_id, document]))
      for (const { counts, gone, id } of users) {
        expect([id, [...gone.keys()].filter((one) => rows.has(one))]).toEqual([id, []])
        expect([id, documents.get(id)?.event_count ?? 0]).toEqual([id, counts.size])
      }
      const space = "openai:text-embedding-3-small:384"
      const erasedPhrases = users.flatMap(({ gone }) =>
        [...gone.values()].flatMap(({ search_phrase }) => search_phrase ?? []),
      )
      const keys = erasedPhrases.map((phrase) => phraseKey(space, phrase))
      const ids = { _id: { $in: keys } }
      expect(
        await system.database.collection<{ _id: string }>("phrase_embeddings").find(ids).toArray(),
      ).toEqual([])
      const gone = users.flatMap(({ counts, id }) => (counts.size === 0 ? [`^${id}\\|`] : []))
      const ledger = system.database.collection<{ _id: string }>("user_embedding_ledger")
      expect(await ledger.find({ _id: { $regex: gone.join("|") } }).toArray()).toEqual([])
      const heavyIds = await ledger.find({ _id: /^heavy\|/ }).toArray()
      expect(new Set(heavyIds.map(({ _id }) => _id.split("|").length))).toEqual(new Set([3]))
      expect(new Set(heavyIds.map(({ _id }) => _id.split("|")[1])).size).toBe(1)
    },
    env,
  )
})
