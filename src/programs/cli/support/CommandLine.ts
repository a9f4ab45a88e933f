/**
 * Reads the words of a command line before @effect/cli does. It names the option of a wrong value, and proposes the name
 * that a misspelt word comes near to. It puts options before arguments, because the parser takes `1` after a flag for
 * the value of the flag.
 */
import { type CliConfig, CommandDescriptor, HelpDoc, type Usage, type ValidationError } from "@effect/cli"
import { Effect, Option } from "effect"
import { examples } from "./Examples.ts"
import { childrenOf, find, flat, type Path, paragraphs, partsOf, program, type Root, show } from "./Help.ts"
import { BadUsage } from "./Usage.ts"

const refuse = (message: string) => new BadUsage({ message })

/** Levenshtein's distance: how many letters must be added, removed or replaced. */
const distance = (from: string, to: string): number => {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (const [index, letter] of [...from].entries()) {
    const next = [index + 1]
    for (const [at, other] of [...to].entries())
      next.push(Math.min(row[at + 1]! + 1, next[at]! + 1, row[at]! + (letter === other ? 0 : 1)))
    row = next
  }
  return row.at(-1)!
}

/** The name that begins with the word or differs from it least. */
const nearest = (word: string, names: ReadonlyArray<string>): string | undefined => {
  const begun = names.find((name) => word.length > 3 && name.startsWith(word))
  if (begun !== undefined) return begun
  const farthest = word.length < 4 ? 1 : 2
  const [first] = names
    .map((name) => ({ name, far: distance(word, name) }))
    .filter(({ far }) => far <= farthest)
    .toSorted((a, b) => a.far - b.far)
  return first?.name
}

const proposing = (problem: string, name = "") =>
  refuse(name === "" ? problem : `${problem}; did you mean ${name}?`)

const unknownCommand = (path: Path, word: string) => {
  const elsewhere = Object.keys(examples).filter((name) => name.endsWith(` ${word}`))
  const near = nearest(word, childrenOf(path))
  return proposing(
    `there is no command ${[...path, word].join(" ")}`,
    near === undefined ? elsewhere.join(" or ") : [...path, near].join(" "),
  )
}

/** An option with its value, or an argument. */
interface Part {
  readonly label: string
  readonly words: ReadonlyArray<string>
}

const ofProgram = ["--version", "--completions"]
const isOption = (word: string) => /^-[^\d]/.test(word)

const split = Effect.fnUntraced(function* (words: ReadonlyArray<string>, parts: ReadonlyArray<Usage.Named>) {
  const named = (word: string) => parts.find(({ names }) => names.includes(word.toLowerCase()))
  const places = parts.flatMap(({ names: [name = ""] }) => (name.startsWith("<") ? [name.slice(1, -1)] : []))
  const options: Array<Part> = []
  const args: Array<Part> = []
  const addArgument = (word: string) =>
    args.push({ label: places[Math.min(args.length, places.length - 1)] ?? "", words: [word] })
  const end = words.indexOf("--")
  const last = end < 0 ? words.length : end
  for (let at = 0; at < last; at++) {
    const word = words[at]!
    if (!isOption(word)) {
      addArgument(word)
      continue
    }
    const [name = "", ...rest] = word.split("=")
    const option = named(name)
    if (option === undefined) {
      const names = [
        ...parts.flatMap(({ names }) => names.filter(isOption)),
        ...(parts.length > 1 ? [] : ofProgram),
        "--help",
      ]
      return yield* proposing(`there is no option ${name}`, nearest(name, names))
    }
    const takesValue = Option.isSome(option.acceptedValues) && rest.length === 0
    const value = takesValue ? words[++at] : rest.length > 0 ? rest.join("=") : undefined
    if (takesValue && (value === undefined || at >= last || named(value.split("=")[0]!) !== undefined))
      return yield* refuse(`${name}: give a value`)
    options.push({ label: name, words: value === undefined ? [name] : [name, value] })
  }
  for (const word of words.slice(last + 1)) addArgument(word)
  return { options, args }
})

/** What @effect/cli says, shorter. */
const rewritten: ReadonlyArray<readonly [RegExp, string]> = [
  [/^[\s\S]*\n[ └├─│]*/, ""],
  [/^Expected one of the following cases: /, "must be one of "],
  [/^'.*' is not a integer$/, "must be a whole number"],
  [/^'.*' is not a float$/, "must be a number"],
  [/^Path '.*' must exist$/, "must exist, but there is no such file"],
  [/^Expected path '.*' to be /, "must be "],
  [/^Missing argument/, "missing argument"],
]

const textOf = (error: ValidationError.ValidationError): string =>
  rewritten.reduce(
    (text, [pattern, better]) => text.replace(pattern, better),
    paragraphs(flat(error.error)).join(" ").trim() || HelpDoc.toAnsiText(error.error).trim(),
  )

/** The words in an order that @effect/cli parses right, or the reason why they are not a command. */
export const read = Effect.fnUntraced(function* (root: Root, words: Path, config: CliConfig.CliConfig) {
  const path = find(words)
  const rest = words.slice(path.length)
  const isGroup = examples[path.join(" ")] === undefined
  if (isGroup && rest[0] !== undefined && !isOption(rest[0])) return yield* unknownCommand(path, rest[0])
  const { args, options } = yield* split(rest, yield* partsOf(root, path, config))
  if (isGroup) return path
  const toWords = (without?: Part) => {
    const wordsOf = (parts: ReadonlyArray<Part>) =>
      parts.flatMap((part) => (part === without ? [] : part.words))
    const positional = wordsOf(args)
    return [...path, ...wordsOf(options), ...(positional.length > 0 ? ["--", ...positional] : [])]
  }
  /** The parsed command, or a text that says why there is none. */
  const parse = (words: Path) =>
    CommandDescriptor.parse(root, [program, ...words], config).pipe(Effect.mapError(textOf), Effect.merge)
  const parsed = yield* parse(toWords())
  if (typeof parsed !== "string") {
    const [left] = parsed._tag === "UserDefined" ? parsed.leftover : []
    if (left === undefined) return toWords()
    return yield* refuse(isOption(left) ? `${left} is given twice` : `there is no argument for ${left}`)
  }
  if (parsed.startsWith("--")) return yield* refuse(parsed)
  // The value without which the parser finds another problem, or none, is the wrong one.
  const guilty = yield* Effect.findFirst([...options, ...args], (part) =>
    Effect.map(parse(toWords(part)), (other) => other !== parsed),
  )
  const value = Option.map(guilty, ({ label, words }) => `${label} ${words.at(-1) || '""'}: `)
  return yield* refuse(`${Option.getOrElse(value, () => "")}${parsed}`)
})

/** Help of the command that the words name. */
export const showHelp = Effect.fnUntraced(function* (root: Root, words: Path, config: CliConfig.CliConfig) {
  const path = find(words)
  const [unknown] = words.slice(path.length)
  if (unknown !== undefined) return yield* unknownCommand(path, unknown)
  yield* show(root, path, config)
})
