/**
 * Runs the stand-in for OpenAI that the tests use, for use by hand:
 * `bun scripts/openai-stand-in.ts --port 8090`, then OPENAI_BASE_URL=http://127.0.0.1:8090/v1 OPENAI_API_KEY=any.
 */
import { parseArgs } from "node:util"
import { openAiStandIn } from "../test/support/openAiStandIn.ts"

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "8090" },
    latency: { type: "string", default: "0" },
    key: { type: "string" },
  },
})
const { url } = openAiStandIn({
  port: Number(values.port),
  latencyMs: Number(values.latency),
  ...(values.key !== undefined && { apiKey: values.key }),
})
process.stdout.write(`${url}\n`)
