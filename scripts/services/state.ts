/**
 * The state of the servers that `up` has started. It is in `.services/` of this checkout, with the data and logs of the
 * servers, and `down` deletes it. SERVICES_FOLDER names another folder for a second set of servers.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { sleep } from "./command.ts"
import type { Instance } from "./service.ts"

export const servicesFolder = resolve(import.meta.dir, "../..", process.env.SERVICES_FOLDER || ".services")
const stateFile = join(servicesFolder, "state.json")
const lockFile = join(servicesFolder, "lock")

/** The nodes by name. */
export type State = Readonly<Record<string, Instance>>

const isMissing = (error: unknown) => error instanceof Error && "code" in error && error.code === "ENOENT"

const readIfThere = (path: string) => {
  try {
    return readFileSync(path, "utf8")
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
}

export const readState = (): State => JSON.parse(readIfThere(stateFile) ?? "{}") as State

/** Synchronous, so that two services that start at the same time do not overwrite each other. */
const writeState = (state: State) => {
  mkdirSync(servicesFolder, { recursive: true })
  writeFileSync(`${stateFile}.new`, `${JSON.stringify(state, null, 2)}\n`)
  renameSync(`${stateFile}.new`, stateFile)
}

export const remember = (instance: Instance) => writeState({ ...readState(), [instance.name]: instance })

export const forget = (name: string) => {
  const { [name]: _, ...rest } = readState()
  writeState(rest)
}

const holderIsAlive = () => {
  try {
    process.kill(Number(readIfThere(lockFile)), 0)
    return true
  } catch {
    return false
  }
}

/** Runs one `up` or `down` at a time. Afterwards it removes the folder if no server is left. */
export const locked = async <A>(signal: AbortSignal | undefined, action: () => Promise<A>): Promise<A> => {
  for (;;) {
    mkdirSync(servicesFolder, { recursive: true })
    try {
      writeFileSync(lockFile, String(process.pid), { flag: "wx" })
      break
    } catch (error) {
      if (!(error instanceof Error && "code" in error && (error.code === "EEXIST" || isMissing(error))))
        throw error
      if (!holderIsAlive()) rmSync(lockFile, { force: true })
      else await sleep(50)
      signal?.throwIfAborted()
    }
  }
  try {
    return await action()
  } finally {
    if (Object.keys(readState()).length === 0) rmSync(servicesFolder, { recursive: true, force: true })
    else rmSync(lockFile, { force: true })
  }
}
