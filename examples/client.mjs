// The HTTP client on Node 20, without dependencies: node examples/client.mjs http://127.0.0.1:3000
import { createClient, Problem } from "user-embeddings/client"

const shop = createClient({ url: process.argv[2] ?? "http://127.0.0.1:3000", token: process.env.TOKEN })

await shop.putProducts([
  { product_id: "tent-1", product_name: "Two-person tent", category: "camping" },
  { product_id: "stove-1", product_name: "Camping stove", category: "camping" },
])
await shop.search("guest-7", { query: "tent for two" })
const { message_id } = await shop.product("guest-7", "tent-1", "purchase", { price: 199 }, "order-1")
await shop.merge("anna", "guest-7")
const report = await shop.record([{ user_id: "anna", event_type: "product_view", product_id: "stove-1" }])
console.log(`recorded ${report.accepted} of ${report.results.length}`)

while ((await shop.embedding("anna").catch(() => ({ event_count: 0 }))).event_count < 3)
  await new Promise((done) => setTimeout(done, 50))
const taste = await shop.vector("anna")
const { items } = await shop.recommendations("anna", { limit: 3, exclude: "purchased" })
console.log(`taste of ${taste.length} numbers → ${items.map(({ product_name }) => product_name).join(", ")}`)

await shop.retract("anna", { message_id })
try {
  await shop.search("anna", { query: "" })
} catch (error) {
  if (error instanceof Problem)
    console.log(`${error.status} ${error.errors[0].field}: ${error.errors[0].detail}`)
}
