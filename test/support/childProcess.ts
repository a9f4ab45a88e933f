/** Runs a command without input; answers its exit code and what it printed. */
export const childProcess = async (
  command: ReadonlyArray<string>,
  env: Readonly<Record<string, string | undefined>> = {},
) => {
  const child = Bun.spawn([...command], {
    env: { PATH: process.env.PATH, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [code, out, err] = await Promise.all([
    child.exited,
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  return { code, out, err }
}
