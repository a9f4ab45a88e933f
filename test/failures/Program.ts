/** A program of the system in its own process, with the lines that it logs. */
import { bundledProgram } from "../support/bundledProgram.ts"

const main = await bundledProgram("src/programs/main.ts")

/** One line of the log. */
export interface LogLine {
  readonly event: string
  readonly [field: string]: unknown
}

/** For probes that ask several servers: in the short form, many scenarios wait at the same time. */
export const costlyProbeMillis = 250

/** Repeats the probe until it answers; rejects with the name of the wait when the time is over. */
export const until = async <A>(
  what: string,
  seconds: number,
  probe: () => Promise<A | undefined> | A | undefined,
  everyMillis = 50,
): Promise<A> => {
  const deadline = performance.now() + seconds * 1000
  for (;;) {
    const answer = await probe()
    if (answer !== undefined) return answer
    if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`)
    await Bun.sleep(everyMillis)
  }
}

export class Program {
  readonly log: Array<LogLine> = []
  private readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">
  private readonly reading: Promise<void>
  readonly name: string

  constructor(args: ReadonlyArray<string>, env: Readonly<Record<string, string>>) {
    this.name = args.join(" ")
    const inherited = Object.entries(process.env).filter(([name]) =>
      /^(HOME|PATH|TMPDIR|BUN_JSC_.*)$/.test(name),
    )
    this.child = Bun.spawn([process.execPath, main, ...args], {
      env: { ...Object.fromEntries(inherited), LOG_FORMAT: "json", LOG_LEVEL: "info", ...env },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
    this.reading = this.read()
  }

  private async read() {
    const decoder = new TextDecoder()
    let rest = ""
    for await (const chunk of this.child.stderr) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) this.log.push(line.startsWith("{") ? JSON.parse(line) : { event: line })
    }
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  /** The first line with this event that satisfies the predicate. */
  saw(event: string, seconds = 60, matches: (line: LogLine) => boolean = () => true): Promise<LogLine> {
    return until(`${this.name} logs ${event}`, seconds, () => {
      const line = this.log.find((one) => one.event === event && matches(one))
      if (line === undefined && !this.running) throw new Error(`${this.name} ended before it logged ${event}`)
      return line
    })
  }

  count(event: string): number {
    return this.log.filter((line) => line.event === event).length
  }

  /** Waits until a worker has settled this number of messages. */
  handled(messages: number, seconds: number): Promise<true> {
    return until(`${this.name} handles ${messages} messages`, seconds, () => {
      let sum = 0
      for (const { count, event } of this.log) if (event === "batch.processed") sum += Number(count)
      return sum >= messages || undefined
    })
  }

  signal(name: NodeJS.Signals): void {
    this.child.kill(name)
  }

  /** Ends the process as a power cut would. */
  async kill(): Promise<void> {
    this.child.kill("SIGKILL")
    await this.child.exited
  }

  /** The exit code, after the process has ended. */
  async ended(): Promise<number> {
    const code = await this.child.exited
    await this.reading
    return code
  }

  /** The exit code and standard output, after the process has ended by itself. */
  async output(): Promise<{ readonly code: number; readonly out: string }> {
    const [out, code] = await Promise.all([this.child.stdout.text(), this.ended()])
    return { code, out }
  }
}
