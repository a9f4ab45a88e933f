/** Programs in process groups of their own, so that nothing they start outlives them. */
import { spawn } from "node:child_process"
import { resolve } from "node:path"
import { createInterface } from "node:readline"

const root = resolve(import.meta.dir, "../..")

/** Runs a program to its end, passes on each line of its output, and answers its exit code. */
export const runInGroup = async (
  [program = "", ...args]: readonly string[],
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
  onLine: (line: string) => void,
): Promise<number> => {
  signal.throwIfAborted()
  const child = spawn(program, args, { cwd: root, detached: true, env, stdio: ["ignore", "pipe", "pipe"] })
  const signalGroup = (name: NodeJS.Signals) => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, name)
    } catch {
      // The group is empty.
    }
  }
  const interrupt = () => {
    signalGroup("SIGTERM")
    setTimeout(() => signalGroup("SIGKILL"), 5000).unref()
  }
  signal.addEventListener("abort", interrupt)
  for (const input of [child.stdout, child.stderr]) createInterface({ input }).on("line", onLine)
  const closed = new Promise<void>((done) => child.once("close", () => done()))
  const exitCode = await new Promise<number>((done, failed) => {
    child.once("error", failed).once("exit", (code) => done(code ?? 128))
  })
  signalGroup("SIGKILL")
  await closed
  signal.removeEventListener("abort", interrupt)
  signal.throwIfAborted()
  return exitCode
}
