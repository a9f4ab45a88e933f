/**
 * `--help` of every command: purpose, command line, arguments and options in columns, and examples. The texts are those
 * of the commands, without the sentences that @effect/cli adds to each option.
 */
import type { CliConfig, Span, Usage } from "@effect/cli"
import { BuiltInOptions, CommandDescriptor, CommandDirective, HelpDoc } from "@effect/cli"
import { Console, Effect } from "effect"
import { examples } from "./Examples.ts"
import { bold, columns, wrap } from "./Output.ts"

export const program = "user-embeddings"
export type Root = CommandDescriptor.Command<unknown>
/** Words of a command, such as `["failed", "list"]`; the program itself is `[]`. */
export type Path = ReadonlyArray<string>

const under = (path: Path): ReadonlyArray<readonly [string, ReadonlyArray<string>]> =>
  Object.entries(examples).filter(([name]) => path.every((word, depth) => name.split(" ")[depth] === word))

/** The command at the beginning of a command line. */
export const find = (words: Path): Path => {
  const differs = words.findIndex((_, index) => under(words.slice(0, index + 1)).length === 0)
  return differs < 0 ? words : words.slice(0, differs)
}

/** Commands of a group, in the order of the examples. */
export const childrenOf = (path: Path): ReadonlyArray<string> => [
  ...new Set(under(path).flatMap(([name]) => name.split(" ").slice(path.length, path.length + 1))),
]

/**
 * What @effect/cli knows of a command. It comes from the parser, because descriptors hold only the first level of
 * commands.
 */
const asked = (root: Root, path: Path, config: CliConfig.CliConfig) =>
  CommandDescriptor.parse(root, [program, ...path, "--help"], config).pipe(
    Effect.map((directive) =>
      CommandDirective.isBuiltIn(directive) && BuiltInOptions.isShowHelp(directive.option)
        ? directive.option
        : undefined,
    ),
  )
const docOf = (root: Root, path: Path, config: CliConfig.CliConfig) =>
  Effect.map(asked(root, path, config), (option) => option?.helpDoc ?? HelpDoc.empty)

const named = (usage: Usage.Usage): ReadonlyArray<Usage.Named> => {
  switch (usage._tag) {
    case "Named":
      return [usage]
    case "Optional":
    case "Repeated":
      return named(usage.usage)
    case "Concat":
    case "Alternation":
      return [...named(usage.left), ...named(usage.right)]
    default:
      return []
  }
}

/** The options of a command, and its arguments in angle brackets. */
export const partsOf = (root: Root, path: Path, config: CliConfig.CliConfig) =>
  Effect.map(asked(root, path, config), (option) => (option === undefined ? [] : named(option.usage)))

export const textOf = (span: Span.Span): string => {
  switch (span._tag) {
    case "Text":
    case "URI":
      return span.value
    case "Sequence":
      return textOf(span.left) + textOf(span.right)
    default:
      return textOf(span.value)
  }
}

export const flat = (doc: HelpDoc.HelpDoc): ReadonlyArray<HelpDoc.HelpDoc> =>
  doc._tag === "Sequence" ? [...flat(doc.left), ...flat(doc.right)] : doc._tag === "Empty" ? [] : [doc]

/** The blocks under a heading. */
const section = (doc: HelpDoc.HelpDoc, heading: string): ReadonlyArray<HelpDoc.HelpDoc> => {
  const blocks = flat(doc)
  const isHeading = (block: HelpDoc.HelpDoc) => block._tag === "Header"
  const start = blocks.findIndex((block) => block._tag === "Header" && textOf(block.value) === heading)
  if (start < 0) return []
  const rest = blocks.slice(start + 1)
  const end = rest.findIndex(isHeading)
  return end < 0 ? rest : rest.slice(0, end)
}

export const paragraphs = (blocks: ReadonlyArray<HelpDoc.HelpDoc>): ReadonlyArray<string> =>
  blocks.flatMap((block) => (block._tag === "Paragraph" ? [textOf(block.value)] : []))

/** Sentences of @effect/cli about the type of a value, which the option's name shows as well. */
const typeSentence =
  /^(A user-defined piece of text|An? (existing )?(file|directory|path)|An integer|A (whole|floating point) number|A true or false value|One of the following: .*|This (setting|option|argument) (is optional|may be repeated zero or more times))\.?$/

const definitions = (blocks: ReadonlyArray<HelpDoc.HelpDoc>): ReadonlyArray<readonly [string, string]> =>
  blocks.flatMap((block) =>
    block._tag !== "DescriptionList"
      ? []
      : block.definitions.map(([name, about]) => {
          const own = paragraphs(flat(about)).filter((sentence) => !typeSentence.test(sentence))
          return [textOf(name).replaceAll(" | ", "|").replace("…...", "…"), own.join(" ")]
        }),
  )

const width = () => Math.min(100, columns())

/** Names and meanings in two columns; long meanings are wrapped. */
const inColumns = (rows: ReadonlyArray<readonly [string, string]>): string => {
  const left = Math.min(32, Math.floor(width() / 3) - 4, Math.max(...rows.map(([name]) => name.length))) + 4
  return rows
    .map(([name, about]) => {
      const head = `  ${name}`
      const gap = "\n".padEnd(left + 1)
      return (
        (head.length < left ? head.padEnd(left) : `${head}${gap}`) + wrap(about, width() - left).join(gap)
      )
    })
    .join("\n")
}

const describe = (doc: HelpDoc.HelpDoc): string => paragraphs(section(doc, "DESCRIPTION")).join(" ")

const ofProgram: ReadonlyArray<readonly [string, string]> = [
  ["-h, --help", `Shows help, also for each command: ${program} failed retry --help`],
  ["--version", "Shows the version"],
  ["--completions bash|zsh|fish", "Prints a completion script for the shell"],
]

const line = (example: string) => `  ${example.includes(`${program} `) ? example : `${program} ${example}`}`

/** Help of the command at `path`. */
export const render = (root: Root, path: Path, config: CliConfig.CliConfig) =>
  Effect.gen(function* () {
    const doc = yield* docOf(root, path, config)
    const own = examples[path.join(" ")]
    const children = own ? [] : childrenOf(path)
    const commands = yield* Effect.forEach(children, (child) =>
      Effect.map(docOf(root, [...path, child], config), (doc) => [child, describe(doc)] as const),
    )
    const args = definitions(section(doc, "ARGUMENTS"))
    const options = path.length === 0 ? ofProgram : definitions(section(doc, "OPTIONS"))
    const kind = children.length > 0 ? ["COMMAND"] : options.length > 0 ? ["[OPTIONS]"] : []
    const shown = own ?? children.flatMap((child) => under([...path, child])[0]?.[1][0] ?? []).slice(0, 3)
    const part = (heading: string, lines: string) => (lines === "" ? [] : [`${bold(heading)}\n${lines}`])
    return [
      wrap(describe(doc), width()).join("\n"),
      ...part("USAGE", `  ${[program, ...path, ...kind, ...args.map(([name]) => name)].join(" ")}`),
      ...part("COMMANDS", inColumns(commands)),
      ...part("ARGUMENTS", inColumns(args)),
      ...part("OPTIONS", inColumns(options)),
      ...part("EXAMPLES", shown.map(line).join("\n")),
    ].join("\n\n")
  })

export const show = (root: Root, path: Path, config: CliConfig.CliConfig) =>
  Effect.flatMap(render(root, path, config), Console.log)

/**
 * A completion script for bash. Corrects that of @effect/cli, which breaks on the hyphen in the program's name and does
 * not find the commands of a group.
 */
export const bashCompletions = (root: Root) =>
  Effect.map(CommandDescriptor.getBashCompletions(root, program), (lines) =>
    lines
      .join("\n")
      .replace(/^( +)user-embeddings\)$/m, "$1user__embeddings)")
      .replace('cmd="user-embeddings"', 'cmd="user__embeddings"')
      .replace(/^( +\w+),(\w+),(\w+\))$/gm, "$1__$2,$3"),
  )
