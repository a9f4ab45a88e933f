/** `connect` demands no more than HTTP does, and what it rejects with says who refused. */
import { afterAll, expect, test } from "bun:test"
import { connect, UnexpectedAnswer } from "../../../src/layers/http/HttpClient.ts"
import { Problem } from "../../../src/services/model/Problem.ts"

const asked: Array<{ readonly url: string; readonly body: string }> = []
let answer: () => Response = () => Response.json({})
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch: async (request) => {
    const { pathname, search } = new URL(request.url)
    asked.push({ url: pathname + search, body: await request.text() })
    return answer()
  },
})
afterAll(() => server.stop(true))
const shop = connect({ url: `http://127.0.0.1:${server.port}` })
const path = { userId: "u-1" }
const failure = (promise: Promise<unknown>) => promise.catch((error: unknown) => error)

test("query parameters and fields with a default may be left out", async () => {
  answer = () => Response.json({ user_id: "u-1", source: "popular", items: [] })
  await shop.recommendations.recommend({ path })
  await shop.recommendations.recommend({ path, urlParams: { limit: 5 } })
  await shop.recommendations.recommendAmong({ path, payload: { filter: { brand: "Acme" } } })
  answer = () => Response.json({ total: 0, items: [] })
  await shop.operations.deadLetters()
  expect(asked.splice(0).map(({ body, url }) => [url, body])).toEqual([
    ["/api/user/u-1/recommendations", ""],
    ["/api/user/u-1/recommendations?limit=5", ""],
    ["/api/user/u-1/recommendations", '{"filter":{"brand":"Acme"}}'],
    ["/api/dead-letters", ""],
  ])
})

test("bad arguments reject with the problem of the API, before a request", async () => {
  const wrong = await failure(shop.recommendations.recommend({ path, urlParams: { limit: 500 } }))
  expect(wrong).toBeInstanceOf(Problem)
  expect(wrong).toMatchObject({ status: 422, errors: [{ field: "limit" }] })
  expect(asked.splice(0)).toEqual([])
})

test("an answer of something else than the API is an error that says so", async () => {
  answer = () => Response.json({ hello: "world" })
  const unexpected = await failure(shop.recommendations.recommend({ path }))
  expect(unexpected).toBeInstanceOf(UnexpectedAnswer)
  expect(unexpected).toBeInstanceOf(Error)
})
