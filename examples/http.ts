/** A typed client of a running API. Run: `user-embeddings up`, then `bun examples/http.ts [URL]`. */
import { connect, Problem } from "user-embeddings"

const shop = connect({ url: process.argv[2] ?? "http://127.0.0.1:3000", token: process.env.API_TOKEN })

const recorded = await shop.interactions.search({
  path: { userId: "u-http" },
  payload: { query: "wireless headphones", device: "phone" },
})
console.log(`recorded ${recorded.message_id}`)

// A worker applies the search within moments. Until then the response is 404.
for (let attempt = 0; attempt < 100; attempt++) {
  const found = await shop.embeddings.embedding({ path: { userId: "u-http" } }).catch((failure) => {
    if (failure instanceof Problem && failure.status === 404) return undefined
    throw failure
  })
  if (found !== undefined) {
    console.log(`event_count ${found.event_count}, last ${found.last_event_type}, in ${found.space}`)
    break
  }
  await Bun.sleep(50)
}
const { items, source } = await shop.recommendations.recommend({
  path: { userId: "u-http" },
  urlParams: { limit: 3 },
})
console.log(
  `${items.length} recommendations by ${source}: ${items.map(({ product_name }) => product_name).join(", ")}`,
)
