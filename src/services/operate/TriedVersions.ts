/** The newest server versions that the tests of this release ran on. docs/deployment.md has the table of all. */
const newest = { RabbitMQ: "4.3", MySQL: "9.7", MariaDB: "11.8", MongoDB: "6.0" } as const

const productOf = (dependency: string, version: string): keyof typeof newest | undefined => {
  if (dependency === "mysql") return /mariadb/i.test(version) ? "MariaDB" : "MySQL"
  return dependency === "rabbitmq" ? "RabbitMQ" : dependency === "mongodb" ? "MongoDB" : undefined
}

/** Says that a server is newer than all that this release was tried with. */
export const notes = (dependency: string, version: string): ReadonlyArray<string> => {
  const product = productOf(dependency, version)
  const [, found] = /^(\d+\.\d+)/.exec(version) ?? []
  if (product === undefined || found === undefined) return []
  return found.localeCompare(newest[product], "en", { numeric: true }) > 0
    ? [
        `${product} ${found} is newer than ${newest[product]}, the newest version that the tests of this release ran on`,
      ]
    : []
}
