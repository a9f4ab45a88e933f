/** `bun run env-example`: regenerates `.env.example` from the declarations in Settings.ts. */
import * as Settings from "../src/services/Settings.ts"

await Bun.write(new URL("../.env.example", import.meta.url), Settings.envExample)
