import { expect, test } from "bun:test"
import { notes } from "../../../src/services/operate/TriedVersions.ts"

test("a server that is newer than all tried versions is named, by its own product", () => {
  const newer = [
    ["rabbitmq", "4.10.0", "RabbitMQ 4.10"],
    ["rabbitmq", "5.0.1", "RabbitMQ 5.0"],
    ["mysql", "10.0.1", "MySQL 10.0"],
    ["mysql", "12.0.2-MariaDB-ubu2404", "MariaDB 12.0"],
    ["mongodb", "99.0.0", "MongoDB 99.0"],
  ] as const
  for (const [dependency, version, product] of newer)
    expect(notes(dependency, version)).toEqual([
      expect.stringMatching(new RegExp(`^${product.replace(".", "\\.")} is newer than \\d+\\.\\d+, `)),
    ])
})

test("tried and older versions, and what is no server, have no note", () => {
  const tried = [
    ["rabbitmq", "4.3.6"],
    ["rabbitmq", "3.10.8"],
    ["mysql", "9.7.4"],
    ["mysql", "8.4.3"],
    ["mysql", "11.8.2-MariaDB"],
    ["mongodb", "6.0.5"],
    ["sqlite", "99.0.0"],
    ["openai", "text-embedding-3-small"],
  ] as const
  for (const [dependency, version] of tried) expect(notes(dependency, version)).toEqual([])
})
