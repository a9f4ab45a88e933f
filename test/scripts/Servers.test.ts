/** The commands that start and break servers: what they refuse, and how they address nodes. No server is started. */
import { expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"

const root = resolve(import.meta.dir, "../..")
const noUrls = { RABBITMQ_DSN: "", RABBITMQ_MANAGEMENT_URL: "", MYSQL_URL: "", MONGODB_URL: "" }

const run = async (args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) => {
  const child = Bun.spawn([process.execPath, ...args], {
    cwd: root,
    env: { ...process.env, ...noUrls, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited])
  return { code, out, first: err.split("\n")[0] }
}

const services = "scripts/services.ts"
const testServers = "scripts/test-servers.ts"
const elsewhere = join(tmpdir(), "no-services")

test("a wrong command line ends with exit code 2 and its reason, before anything is started", async () => {
  const wrong = [
    [[services, "up", "--only", "mysql=3"], {}, "mysql has no cluster here; rabbitmq and mongodb have"],
    [
      [services, "up", "--only", "kafka"],
      {},
      'unknown service "kafka"; there are rabbitmq, mysql, mongodb, postgres, jaeger',
    ],
    [[testServers, "unit"], {}, 'unknown suite "unit"; there are contracts, pipeline, commands, failures'],
    [
      [testServers],
      { MYSQL_URL: "mysql://127.0.0.1:1/x" },
      "MYSQL_URL is set, but not RABBITMQ_DSN and RABBITMQ_MANAGEMENT_URL and MONGODB_URL",
    ],
  ] as const
  const answers = await Promise.all(wrong.map(([args, env]) => run(args, env)))
  expect(answers.map(({ code, first }) => [code, first])).toEqual(wrong.map(([, , reason]) => [2, reason]))
}, 30_000)

test("a node that was not started is refused with its name", async () => {
  const { code, first } = await run([services, "kill", "rabbitmq2"], { SERVICES_FOLDER: elsewhere })
  expect([code, first]).toEqual([1, "rabbitmq2 was not started by `bun run services up`; running: none"])
}, 30_000)

test("nodes have the names of their servers, numbered in the order of the URL, and each its own URL", async () => {
  const folder = mkdtempSync(join(tmpdir(), "control-"))
  const journal = join(folder, "journal")
  const script = `
    const { nodes } = await import("${root}/test/support/cluster.ts")
    const sacrificial = await import("${root}/scripts/services/sacrificial.ts")
    const all = ["rabbitmq", "mysql", "mongodb"].flatMap(nodes)
    for (const node of all) await node.kill()
    await sacrificial.pause("rabbitmq")
    await sacrificial.exec("mysql", "mysqladmin", "a b")
    console.log(JSON.stringify(all.map(({ address, env, name }) => [name, address, env])))`
  const { code, out } = await run(["-e", script], {
    SERVERS_CONTROL: `sh -c 'echo "$@" >> ${journal}' control {action} {name}`,
    SACRIFICIAL_SERVERS: JSON.stringify({
      RABBITMQ_DSN: "amqp://u:p@a:1,b:2/shop",
      RABBITMQ_MANAGEMENT_URL: "http://a:3,http://b:4",
      MYSQL_URL: "mysql://u:p@c:5/db",
      MONGODB_URL: "mongodb://u:p@d:6,e:7/?replicaSet=rs0",
    }),
  })
  const said = readFileSync(journal, "utf8").trim().split("\n")
  rmSync(folder, { recursive: true })
  expect(code).toBe(0)
  expect(JSON.parse(out)).toEqual([
    ["rabbitmq1", "a:1", { RABBITMQ_DSN: "amqp://u:p@a:1/shop", RABBITMQ_MANAGEMENT_URL: "http://a:3/" }],
    ["rabbitmq2", "b:2", { RABBITMQ_DSN: "amqp://u:p@b:2/shop", RABBITMQ_MANAGEMENT_URL: "http://b:4/" }],
    ["mysql", "c:5", { MYSQL_URL: "mysql://u:p@c:5/db" }],
    ["mongodb1", "d:6", { MONGODB_URL: "mongodb://u:p@d:6/?directConnection=true" }],
    ["mongodb2", "e:7", { MONGODB_URL: "mongodb://u:p@e:7/?directConnection=true" }],
  ])
  // The nodes of one server are paused at the same time.
  expect(said.toSorted()).toEqual([
    "exec mysql mysqladmin a b",
    ...["mongodb1", "mongodb2", "mysql", "rabbitmq1", "rabbitmq2"].map((name) => `kill ${name}`),
    ...["pause rabbitmq1", "pause rabbitmq2"],
  ])
}, 30_000)
