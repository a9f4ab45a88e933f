/** The text that the API writes to a terminal when it starts: addresses, commands to try, and how to stop. */
import { resolve } from "node:path"
import { Console, Effect, Option } from "effect"
import manifest from "../../package.json" with { type: "json" }
import * as Stack from "../layers/Stack.ts"
import * as Settings from "../services/Settings.ts"
import { bold } from "./cli/support/Output.ts"

export interface Started {
  readonly url: string
  readonly data: string
  readonly needsToken: boolean
}

const attempt = ({ needsToken, url }: Started) =>
  `curl -X POST ${url}/api/user/123/search${needsToken ? ' -H "authorization: Bearer $TOKEN"' : ""} -H 'content-type: application/json' -d '{"query":"wireless headphones"}'`

/** Runs a command: in the installed package, or in a clone of the repository. */
const program = import.meta.dir.includes("/node_modules/") ? "npx user-embeddings" : "bun run"

export const welcome = (started: Started): string => {
  const { data, needsToken, url } = started
  const token = needsToken ? ' -H "authorization: Bearer $TOKEN"' : ""
  const rows = [
    ["page", `${url}/`],
    ["docs", `${url}/docs`],
    ["try", attempt(started)],
    ["then", `curl${token} '${url}/api/user/123/recommendations?limit=3'`],
    ["data", data],
    ["look", ["doctor", "stats", "user show 123"].map((command) => `${program} ${command}`).join(" · ")],
    ["stop", "Ctrl-C; recorded data is kept"],
  ] as const
  return [
    "",
    `  ${bold(`user-embeddings ${manifest.version}`)} is up`,
    "",
    ...rows.map(([what, where]) => `  ${bold(what)}  ${where}`),
    "",
  ].join("\n")
}

/** Writes to stderr: the whole text to a terminal, else only the command to try. */
export const greet = (url: string) =>
  Effect.gen(function* () {
    const folder = resolve(yield* Settings.DATA_DIR)
    const started: Started = {
      url,
      data:
        (yield* Stack.kind) === "embedded"
          ? `${folder} (embedded stack; for real servers set RABBITMQ_DSN, MYSQL_URL and MONGODB_URL)`
          : "the servers of RABBITMQ_DSN, MYSQL_URL and MONGODB_URL",
      needsToken: Option.isSome(yield* Settings.API_TOKENS),
    }
    yield* Console.error(process.stderr.isTTY ? welcome(started) : `Try: ${attempt(started)}`)
  })
