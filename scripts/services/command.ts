/** Running programs, waiting with a time limit, and free ports. */
import { createServer } from "node:net"

export const sleep = (milliseconds: number) => new Promise<void>((done) => setTimeout(done, milliseconds))

export const messageOf = (error: unknown) =>
  error instanceof Error ? error.message || error.name : String(error)

export const lastLines = (text: string, count: number) => text.trimEnd().split("\n").slice(-count).join("\n")

interface RunOptions {
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
}

/** Runs a program to its end and answers its standard output. A failure rejects with the last lines of its output. */
export const run = async (command: readonly string[], options: RunOptions = {}): Promise<string> => {
  options.signal?.throwIfAborted()
  const child = Bun.spawn([...command], {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    env: { ...process.env, ...options.env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited])
  options.signal?.throwIfAborted()
  if (code !== 0) {
    throw new Error(`\`${command.slice(0, 4).join(" ")}\` failed (${code}): ${lastLines(err || out, 5)}`)
  }
  return out
}

/** Rejects when `promise` has not settled in time. */
export const within = async <A>(milliseconds: number, promise: Promise<A>): Promise<A> => {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${milliseconds} ms`)), milliseconds)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** Different free TCP ports on loopback. */
export const freePorts = async (count: number): Promise<number[]> => {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer()
      await new Promise<void>((listening, failed) => {
        server.once("error", failed).listen(0, "127.0.0.1", listening)
      })
      return server
    }),
  )
  return Promise.all(
    servers.map(async (server) => {
      const address = server.address()
      await new Promise<void>((closed) => server.close(() => closed()))
      if (address === null || typeof address === "string") throw new Error("no free TCP port on 127.0.0.1")
      return address.port
    }),
  )
}
