/**
 * The URLs of a cluster in one variable, separated by commas: `amqp://u:p@a,amqp://u:p@b`, or with the user first and the
 * virtual host last, `amqp://u:p@a:5672,b:5672/shop`.
 */
import { Either } from "effect"

const hasProtocol = (part: string): boolean => /^[a-z]+:\/\//i.test(part)
const hasHost = (url: string): boolean => URL.canParse(url) && new URL(url).hostname !== ""
const pathOf = (url: string): string => new URL(url).pathname.replace(/^\/$/, "")

/** Completes the hosts of a group. Its first part has the protocol and the user, its last part the path. */
const completed = (group: ReadonlyArray<string>): ReadonlyArray<string> => {
  const [, login = ""] = /^([a-z]+:\/\/(?:.*@)?)/i.exec(group[0] ?? "") ?? []
  const path = group.length === 1 ? "" : (/[/?].*$/.exec(group.at(-1) ?? "")?.[0] ?? "")
  return group.map((part, index) => {
    const whole = index === 0 ? part : `${login}${part}`
    return index === group.length - 1 ? whole : `${whole}${path}`
  })
}

/** Why a part is refused. It does not repeat the part, which may hold a piece of a password. */
const problemOf = (group: ReadonlyArray<string>, index: number, url: string): string | undefined => {
  const part = group[index] ?? ""
  if (part === "") return "is empty"
  if (index > 0 && part.includes("@")) return "has a user but no protocol; write a comma in a password as %2C"
  if (index < group.length - 1 && /[/?]/.test(part.replace(/^[a-z]+:\/\//i, "")))
    return "has a path; write the path after the last host"
  if (!hasHost(url)) return "has no valid host and port; write a comma in a password as %2C"
  return undefined
}

/** The URL of each node, or what is wrong with the text. */
export const nodeUrls = (
  text: string,
  protocols: ReadonlyArray<string>,
): Either.Either<ReadonlyArray<string>, string> => {
  const parts = text.split(",").map((part) => part.trim())
  const starts = protocols.map((name) => `${name}//`).join(" or ")
  const isOurs = (part: string) => protocols.some((name) => part.startsWith(`${name}//`))
  if (!isOurs(parts[0] ?? "") || (parts.length === 1 && !hasHost(text)))
    return Either.left(`must be a URL that starts with ${starts}`)
  const groups: Array<Array<string>> = []
  for (const part of parts)
    if (hasProtocol(part)) groups.push([part])
    else groups.at(-1)?.push(part)
  const urls: Array<string> = []
  for (const group of groups)
    for (const [index, url] of completed(group).entries()) {
      const problem = isOurs(url) ? problemOf(group, index, url) : `must start with ${starts}`
      if (problem !== undefined) return Either.left(`part ${urls.length + 1} of ${parts.length} ${problem}`)
      urls.push(url)
    }
  const other = urls.findIndex((url) => pathOf(url) !== pathOf(urls[0] ?? ""))
  return other < 0
    ? Either.right(urls)
    : Either.left(`part ${other + 1} of ${parts.length} has another path than part 1; all need the same`)
}
