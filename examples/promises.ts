/** The whole system in one program, without servers: record, wait, read. Run: `bun examples/promises.ts`. */
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { open } from "user-embeddings"

const folder = await mkdtemp(join(tmpdir(), "shop-"))
const shop = await open({ stack: "embedded", DATA_DIR: folder, EMBEDDING_DIMENSIONS: 384 })

await shop.putProducts([
  {
    product_id: "hp-1",
    product_name: "Studio headphones",
    category: "audio",
    text: "wireless over-ear headphones",
  },
  {
    product_id: "sp-1",
    product_name: "Garden speaker",
    category: "audio",
    text: "outdoor bluetooth speaker",
  },
  { product_id: "ra-1", product_name: "Folding rake", category: "garden", text: "rake for leaves and grass" },
])
const first = await shop.record({
  user_id: "u-1",
  event_type: "search",
  search_phrase: "earphones for music",
})
const again = await shop.record({
  user_id: "u-1",
  event_type: "search",
  search_phrase: "earphones for music",
  occurred_at: first.occurred_at,
})
await shop.record({
  user_id: "u-1",
  event_type: "product_view",
  product_id: "sp-1",
  metadata: { device: "phone" },
})
await shop.drained()

const embedding = await shop.embedding("u-1")
const { items, source } = await shop.recommend("u-1", { limit: 3 })
console.log(`recorded again: duplicate = ${again.duplicate}`)
console.log(
  `${embedding?.event_count} interactions in ${embedding?.embedding.length} dimensions (${embedding?.space})`,
)
for (const { because, product_name, score } of items) {
  const reasons = because.map(({ event, share }) => `${event.event_type} ${(100 * share).toFixed(0)} %`)
  console.log(`${source}: ${product_name} ${score.toFixed(3)} because of ${reasons.join(", ") || "nothing"}`)
}

await shop.close()
await rm(folder, { recursive: true })
