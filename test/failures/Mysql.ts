/** MySQL is killed, becomes read-only and closes connections, under load on two APIs. Clients may repeat what was refused. */
import { expect } from "bun:test"
import { type Connection, createConnection, type RowDataPacket } from "mysql2/promise"
import { nodes } from "../support/cluster.ts"
import { until } from "./Program.ts"
import { happenings } from "./Shop.ts"
import { consuming, failures, inForm, type System } from "./System.ts"

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
  const apis = [await system.api(env), await system.api(env)]
  const listening = await Promise.all(apis.map((api) => api.saw("api.listening")))
  await consuming(system.worker())
  return { apis, urls: listening.map(({ url }) => String(url)) }
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

failures(
  "MySQL",
  "servers",
  (scenario) => {
    scenario("killed and read-only under load on two APIs", async (system) => {
      const { apis, urls } = await start(system)
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
        for (const url of urls)
          await until("a degraded readiness", 5, async () => {
            const response = await fetch(`${url}/readyz`)
            const { status } = (await response.json()) as { status: string }
            return (response.status === 200 && status === "degraded") || undefined
          })
        const { code, out } = await system.command("doctor")
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
      await system.settled(30)
      await system.proof()
    })

    scenario("closes connections, idle ones and that of the leader lock", async (system) => {
      const usual = await asAdmin(async (admin) => {
        const [[row]] = await admin.query<Array<RowDataPacket & { readonly wait: number }>>(
          "SELECT @@GLOBAL.wait_timeout AS wait",
        )
        return row!.wait
      })
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
