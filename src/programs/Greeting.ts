/** What somebody reads who has just started the API by hand: where it is, what to try, where things lie, how to stop. */
import { resolve } from "node:path"
import { Console, Effect, Option } from "effect"
import manifest from "../../package.json" with { type: "json" }
import * as Stack from "../layers/Stack.ts"
import * as Settings from "../services/Settings.ts"
import { bold } from "./cli/support/Output.ts"

export interface Started {
  readonly url: string
  /** In words. */
  readonly data: string
  /** Requests need a token. */
  readonly guarded: boolean
}

const attempt = ({ guarded, url }: Started) =>
  `curl -X POST ${url}/api/user/123/search${guarded ? ' -H "authorization: Bearer $TOKEN"' : ""} -H 'content-type: application/json' -d '{"query":"wireless headphones"}'`

/** How commands are run: from the installed package, or in a clone of the repository. */
const program = import.meta.dir.includes("/node_modules/") ? "npx user-embeddings" : "bun run"

/** For a terminal. */
export const welcome = (started: Started): string => {
  const { data, guarded, url } = started
  const token = guarded ? ' -H "authorization: Bearer $TOKEN"' : ""
  const rows = [
    ["page", `${url}/`],
    ["docs", `${url}/docs`],
    ["try", attempt(started)],
    ["then", `curl${token} '${url}/api/user/123/recommendations?limit=3'`],
    ["data", data],
    ["look", ["doctor", "stats", "user show 123"].map((command) => `${program} ${command}`).join(" · ")],
    ["stop", "Ctrl-C; what is recorded stays"],
  ] as const
  return [
    "",
    `  ${bold(`user-embeddings ${manifest.version}`)} is up`,
    "",
    ...rows.map(([what, where]) => `  ${bold(what)}  ${where}`),
    "",
  ].join("\n")
}

/** On stderr: all of it on a terminal, else the line to try. */
export const greet = (url: string) =>
  Effect.gen(function* () {
    const folder = resolve(yield* Settings.DATA_DIR)
    const started: Started = {
      url,
      data:
        (yield* Stack.kind) === "embedded"
          ? `${folder} (embedded stack; real servers by RABBITMQ_DSN, MYSQL_URL and MONGODB_URL)`
          : "the servers of RABBITMQ_DSN, MYSQL_URL and MONGODB_URL",
      guarded: Option.isSome(yield* Settings.API_TOKENS),
    }
    yield* Console.error(process.stderr.isTTY ? welcome(started) : `Try: ${attempt(started)}`)
  })
