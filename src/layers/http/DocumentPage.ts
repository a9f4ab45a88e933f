/** A document of `docs/` as a page, so that a link of the operator's page leads to the part that says what to do. Pure. */

const escaped = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")

/** The anchor of a heading, as GitHub makes it. */
export const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}_ -]/gu, "")
    .replaceAll(" ", "-")

/** A link that leads out of `docs/` names a file of the repository, which this server does not have. */
const link = (text: string, target: string) =>
  /^(https?:\/\/|#|[\w-]+\.md(#|$))/.test(target) ? `<a href="${target}">${text}</a>` : text

const inline = (markdown: string): string =>
  markdown
    .split(/(`[^`]+`)/)
    .map((part) =>
      part.startsWith("`") && part.length > 2
        ? `<code>${escaped(part.slice(1, -1))}</code>`
        : escaped(part).replace(/\*\*(.+?)\*\*/g, "<b>$1</b>"),
    )
    .join("")
    .replace(/!?\[([^\]]*)\]\(([^)\s]+)\)/g, (_, text, target) => link(text, target))

const cells = (row: string, tag: "td" | "th") =>
  `<tr>${row
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => `<${tag}>${inline(cell.trim())}</${tag}>`)
    .join("")}</tr>`

/** Lines of a block that is no code. */
const block = (lines: ReadonlyArray<string>): string => {
  const [first = ""] = lines
  const heading = /^(#{1,4}) (.*)$/.exec(first)
  if (heading !== null) {
    const [, marks = "", text = ""] = heading
    const rest = lines.length > 1 ? block(lines.slice(1)) : ""
    return `<h${marks.length} id="${anchorOf(text)}">${inline(text)}</h${marks.length}>${rest}`
  }
  if (first.startsWith("|")) {
    const [head = "", , ...rows] = lines
    return `<table><thead>${cells(head, "th")}</thead><tbody>${rows.map((row) => cells(row, "td")).join("")}</tbody></table>`
  }
  if (first.startsWith("    ")) return `<pre tabindex="0">${escaped(lines.join("\n"))}</pre>`
  const list = /^(-|\d+\.) /.exec(first)
  if (list !== null) {
    const tag = list[1] === "-" ? "ul" : "ol"
    const items = lines
      .join("\n")
      .split(/^(?:-|\d+\.) /m)
      .slice(1)
    return `<${tag}>${items.map((item) => `<li>${inline(item.trim())}</li>`).join("")}</${tag}>`
  }
  return `<p>${inline(lines.join("\n"))}</p>`
}

const blocks = (markdown: string): string =>
  markdown
    .split(/\n{2,}/)
    .map((text) => text.split("\n").filter((line) => line.trim() !== ""))
    .filter((lines) => lines.length > 0)
    .map(block)
    .join("\n")

/** A link to a document that this server does not have is only text: a package has few of them. */
const withoutDeadLinks = (html: string, isServed: (name: string) => boolean): string =>
  html.replace(/<a href="([\w-]+\.md)(?:#[^"]*)?">(.*?)<\/a>/g, (all, name, text) =>
    isServed(name) ? all : text,
  )

export const documentPage = (
  name: string,
  markdown: string,
  isServed: (name: string) => boolean = () => true,
): string => {
  const body = markdown
    .split(/^```\w*\n([\s\S]*?)^```$/m)
    .map((part, index) =>
      index % 2 === 0 ? blocks(part) : `<pre tabindex="0">${escaped(part.trimEnd())}</pre>`,
    )
    .join("\n")
  return `<!doctype html>
<html lang="en" data-theme="auto">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <meta name="color-scheme" content="light dark" />
    <title>${escaped(name)} · user-embeddings</title>
    <link rel="icon" href="/page/icon.svg" type="image/svg+xml" />
    <link rel="stylesheet" href="/page/page.css" />
  </head>
  <body>
    <header><a href="/">← the page</a> <span class="quiet">docs/${escaped(name)}</span></header>
    <main class="card document">
${withoutDeadLinks(body, isServed)}
    </main>
  </body>
</html>
`
}
