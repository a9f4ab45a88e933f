/** MySQL is killed, becomes read-only and closes connections, under load on two APIs. Clients may repeat what was refused. */
import { expect } from "bun:test"
import { once } from "node:events"
import { connect } from "node:net"
import { type Connection, createConnection, type RowDataPacket } from "mysql2/promise"
import { nodes } from "../support/cluster.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, long, type System } from "./System.ts"

const [server] = nodes("mysql")

/** The URL of a user that may change the server's state. */
const adminUrl = async (): Promise<string> => {
  const url = new URL(server!.env.MYSQL_URL!)
  url.username = "admin"
  return createConnection(url.href)
    .then((connection) => connection.end())
    .then(
      () => url.href,
      () => server!.env.MYSQL_URL!,
    )
}

const asAdmin = async <A>(run: (admin: Connection) => Promise<A>): Promise<A> => {
  const connection = await createConnection(await adminUrl())
  try {
    return await run(connection)
  } finally {
    await connection.end()
  }
}
const setGlobal = (assignment: string) => asAdmin((admin) => admin.query(`SET GLOBAL ${assignment}`))

const globalNumber = (variable: string) =>
  asAdmin(async (admin) => {
    const [[row]] = await admin.query<Array<RowDataPacket & { readonly value: number }>>(
      `SELECT @@GLOBAL.${variable} AS value`,
    )
    return Number(row!.value)
  })

/** A user with rights on the system's database alone, so that the server's read-only mode holds for it. */
const limitedUrl = async (system: System): Promise<string> => {
  const url = new URL(system.env.MYSQL_URL!)
  const user = `shop_${process.pid}_${system.accepted.size}`
  await asAdmin(async (admin) => {
    await admin.query(`CREATE USER IF NOT EXISTS '${user}'@'%' IDENTIFIED BY 'ue'`)
    await admin.query(`GRANT ALL ON \`${url.pathname.slice(1)}\`.* TO '${user}'@'%'`)
  })
  url.username = user
  url.password = "ue"
  return url.href
}

const start = async (system: System) => {
  const env = { MYSQL_URL: await limitedUrl(system) }
  const apis = await Promise.all([system.api(env), system.api(env)])
  const listening = await Promise.all(apis.map((api) => api.saw("api.listening")))
  await consuming(system.worker())
  return { apis, env, urls: listening.map(({ url }) => String(url)) }
}

/** Posts during an outage. Requests are refused only while it lasts, and the refusal says when to try again. */
const outage = async (
  system: System,
  urls: ReadonlyArray<string>,
  away: () => Promise<unknown>,
  back: () => Promise<unknown>,
) => {
  const posting = system.load(
    happenings(100, 10_000, `outage-${system.accepted.size}`),
    inForm(60, 300),
    urls,
  )
  await Bun.sleep(500)
  const began = performance.now()
  await away()
  await back()
  const ended = performance.now()
  await Bun.sleep(1000)
  const { refusals, times } = await posting.stop()
  expect(refusals.filter((one) => one.status !== 503 || one.retryAfter === null)).toEqual([])
  expect(refusals.filter((one) => one.ended < began || one.begun > ended)).toEqual([])
  system.say(`${refusals.length} of ${times.length} refused in ${Math.round(ended - began)} ms`)
  return refusals.length
}

/** Posts on a connection of its own: `fetch` has a limit of connections, and its requests wait for one. */
const rawPost = async (base: string, path: string) => {
  const { host, hostname, port } = new URL(base)
  const socket = connect({ host: hostname, port: Number(port) })
  const began = performance.now()
  socket.write(`POST ${path} HTTP/1.1\r\nhost: ${host}\r\ncontent-length: 0\r\n\r\n`)
  const [head] = await once(socket, "data")
  socket.destroy()
  return { head: String(head), millis: performance.now() - began }
}

failures(
  "MySQL",
  "servers",
  (scenario) => {
    scenario("killed and read-only under load on two APIs", async (system) => {
      const { apis, env, urls } = await start(system)
      for (let kill = 1; kill <= inForm(1, 5); kill++) {
        await outage(
          system,
          urls,
          () => server!.kill().then(() => Bun.sleep(inForm(300, 3000))),
          () => server!.start(),
        )
        system.say(`killed, ${kill} of ${inForm(1, 5)}`)
      }
      const isReadOnly = async () => {
        await until("both APIs log the read-only server", 10, () =>
          apis.every(({ log }) =>
            log.some(({ detail, event }) => event === "server.down" && /read.only/i.test(String(detail))),
          )
            ? true
            : undefined,
        )
        // What a server refuses is asked at every third look, so every 15 s.
        for (const url of urls)
          await until("a degraded readiness", 20, async () => {
            const response = await fetch(`${url}/readyz`)
            const { status } = (await response.json()) as { status: string }
            return (response.status === 200 && status === "degraded") || undefined
          })
        const { code, out } = await system.commandWith(env, "doctor")
        expect([code, out]).toEqual([1, expect.stringContaining("refuses INSERT")])
        await Bun.sleep(inForm(0, 20_000))
      }
      try {
        const refused = await outage(
          system,
          urls,
          () => setGlobal("read_only = ON").then(isReadOnly),
          () => setGlobal("read_only = OFF"),
        )
        expect(refused).toBeGreaterThan(0)
      } finally {
        await setGlobal("read_only = OFF")
      }
      for (const api of apis) await api.saw("server.up", 10)
      // A bulk request that is larger than a packet of the server.
      const usual = await globalNumber("max_allowed_packet")
      await setGlobal(`max_allowed_packet = ${64 * 1024}`)
      try {
        const small = await system.api({ MYSQL_URL: system.env.MYSQL_URL! })
        await system.post(happenings(50, 10, "large"))
        const { out } = await system.command("doctor")
        expect(out).toContain("max_allowed_packet is 65536 bytes")
        await small.kill()
      } finally {
        await setGlobal(`max_allowed_packet = ${usual}`)
      }
      await system.settled(30)
      await system.proof()
    })

    if (!long) return

    scenario("frozen: nobody waits longer than the deadline", async (system) => {
      const { urls } = await start(system)
      await server!.pause()
      const answers = await Promise.all(
        Array.from({ length: 1500 }, async (_, index) => {
          await Bun.sleep(2 * index)
          return rawPost(urls[index % urls.length]!, `/api/user/frozen-${index}/product/p-1/view`)
        }),
      )
      await server!.resume()
      const times = answers.map(({ millis }) => millis).sort((a, b) => a - b)
      system.say(`answers after ${times[0]!.toFixed()} to ${times.at(-1)!.toFixed()} ms`)
      expect(answers.filter(({ head }) => !/^HTTP\/1.1 503 .*\r\nretry-after: 1\r\n/is.test(head))).toEqual(
        [],
      )
      expect(times.at(-1)).toBeLessThan(11_000)
      await system.load(happenings(100, 15, "after"), 300, urls).done
      await system.proof()
    })

    scenario("readers with long histories leave recording alone", async (system) => {
      const { urls } = await start(system)
      const readers = Array.from({ length: 12 }, (_, index) => `reader-${index}`)
      const { database, rows } = { database: new URL(system.env.MYSQL_URL!).pathname.slice(1), rows: 100_000 }
      await asAdmin(async (admin) => {
        await admin.query(`USE \`${database}\``)
        for (const reader of readers)
          await admin.query(
            `INSERT INTO user_interactions (message_id, user_id, event_type, product_id, occurred_at, metadata,
              created_at, processed_to_queue)
            WITH RECURSIVE digits (d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
            SELECT SHA2(CONCAT(?, '/', n), 256), ?, 'product_view', CONCAT('p-', n MOD 40000),
              UTC_TIMESTAMP(3) - INTERVAL n MINUTE, '{}', UTC_TIMESTAMP(3), TRUE
            FROM (SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d AS n
              FROM digits a, digits b, digits c, digits e, digits f) numbers WHERE n < ?`,
            [reader, reader, rows],
          )
      })
      let reading = true
      const statuses = new Map<number, number>()
      const readings = readers.map(async (reader, index) => {
        while (reading) {
          const path = `/api/user/${reader}/recommendations?exclude=seen`
          const { status } = await fetch(`${urls[index % urls.length]}${path}`)
          statuses.set(status, (statuses.get(status) ?? 0) + 1)
        }
      })
      const answers = await system.load(happenings(100, 300), 300, urls).done
      reading = false
      await Promise.all(readings)
      const p99 = answers.times[Math.floor(answers.times.length * 0.99)]!
      system.say(`POST p99 ${p99.toFixed()} ms; recommendations ${JSON.stringify([...statuses])}`)
      expect(answers.refusals).toEqual([])
      expect(p99).toBeLessThan(200)
      await asAdmin((admin) =>
        admin.query(`DELETE FROM \`${database}\`.user_interactions WHERE user_id LIKE 'reader-%'`),
      )
      await system.settled(30)
      await system.proof()
    })

    scenario("closes connections, idle ones and that of the leader lock", async (system) => {
      const usual = await globalNumber("wait_timeout")
      const idleSeconds = inForm(1, 5)
      await setGlobal(`wait_timeout = ${idleSeconds}`)
      try {
        const { urls } = await start(system)
        for (let round = 1; round <= inForm(2, 10); round++) {
          const posting = system.load(happenings(20, 10, `idle-${round}`), 400, urls)
          const { refusals } = await posting.done
          expect(refusals).toEqual([])
          // At about this time the server closes the connections, while the next round begins.
          await Bun.sleep(idleSeconds * 1000 - 20 + 10 * round)
        }
      } finally {
        await setGlobal(`wait_timeout = ${usual}`)
      }
      await system.settled(30)
      await system.proof()
    })
  },
  { mysql: 1 },
)
