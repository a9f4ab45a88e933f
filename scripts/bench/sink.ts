/** Receives spans like a collector and counts JSON spans; `GET /` returns the count. `sink.ts sink PORT` */
const [, port] = process.argv.slice(2)
const mark = '"startTimeUnixNano":"'
let spans = 0
Bun.serve({
  hostname: "127.0.0.1",
  port: Number(port),
  fetch: async (request) => {
    if (request.method === "GET") return Response.json({ spans })
    const body = Buffer.from(await request.arrayBuffer())
    if (request.url.endsWith("/v1/traces"))
      for (let at = body.indexOf(mark); at >= 0; at = body.indexOf(mark, at + mark.length)) spans++
    return Response.json({})
  },
})
console.error("sink.listening")
