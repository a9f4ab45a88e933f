/** docker-compose.yml: users with the grants of docs/security.md, health checks, and an image that says what it is. */
import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { resolve } from "node:path"

const read = (path: string) => readFileSync(resolve(import.meta.dir, "../..", path), "utf8")

interface Service {
  readonly environment?: Readonly<Record<string, string>>
  readonly healthcheck?: object
  readonly restart?: string
}
const { services } = Bun.YAML.parse(read("docker-compose.yml")) as {
  readonly services: Readonly<Record<string, Service>>
}

test("only the service `users` has passwords of administrators, and only `setup` may change tables", () => {
  for (const [name, { environment = {} }] of Object.entries(services)) {
    if (!["setup", "api", "worker", "sink"].includes(name)) continue
    const urls = ["RABBITMQ_DSN", "MYSQL_URL", "MONGODB_URL"].map((of) => new URL(environment[of]!))
    const users = urls.map(({ username }) => username)
    // In a URL a password would have to be percent-encoded, which compose cannot do.
    for (const { password } of urls) expect(password).toBe("")
    expect([name, users]).toEqual([name, ["ue_run", name === "setup" ? "ue_setup" : "ue_run", "ue_run"]])
    for (const value of Object.values(environment))
      expect(value).not.toMatch(/ROOT_PASSWORD|\{RABBITMQ_PASSWORD/)
  }
})

test("the users get the grants of docs/security.md", () => {
  const guide = read("docs/security.md")
  const made = read("deploy/compose/users.ts")
  const grants = [...guide.matchAll(/^GRANT ([A-Z, ]+) ON `user_embeddings`\.\* TO '(ue_\w+)'@'%';$/gm)]
  expect(grants).toHaveLength(2)
  for (const [, rights, user] of grants) expect(made).toMatch(new RegExp(`"${user}", \\w+, "${rights}"`))
  const [, names = ""] = /const names = "(.*)"/.exec(made) ?? []
  expect(guide).toContain(`'^(${names})$' '^(amq\\.default|${names})$' '^(${names})$'`)
  expect(guide).toContain('roles: [{ role: "readWrite", db: "user_embeddings" }]')
  expect(made).toContain('roles: [{ role: "readWrite", db: database }]')
})

test("every container has a health check, but for those without a port or a program for it", () => {
  const without = Object.entries(services).flatMap(([name, { healthcheck, restart }]) =>
    healthcheck === undefined && restart !== "no" ? [name] : [],
  )
  expect(without).toEqual(["sink", "jaeger", "collector"])
})

test("the image has labels, with the version and the revision that it is built from", () => {
  const labels = [...read("Dockerfile").matchAll(/org\.opencontainers\.image\.(\S+)=/g)].map(
    ([, name]) => name,
  )
  for (const name of ["title", "description", "licenses", "version", "revision"])
    expect(labels).toContain(name)
})
