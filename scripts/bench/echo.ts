/** An HTTP server that does the minimum: it parses a body of events and answers. `echo.ts echo PORT` */
const [, port] = process.argv.slice(2)
Bun.serve({
  hostname: "127.0.0.1",
  port: Number(port),
  fetch: async (request) => {
    const body: unknown = await request.json()
    return Response.json({ accepted: Array.isArray(body) ? body.length : 1 }, { status: 201 })
  },
})
console.error("echo.listening")
