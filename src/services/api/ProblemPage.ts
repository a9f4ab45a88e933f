/** The page of problems: docs/problems.md, and what the API serves at /problems. */
import { pagePath, problemTypes } from "../model/ProblemTypes.ts"

const all = Object.entries(problemTypes)

const intro =
  "An answer that is no success is a problem document (RFC 9457, `application/problem+json`): `type`, `title`, `status`, `detail`, and `errors` by field where fields are wrong. Programs decide by `type` and `status`; `detail` is for people and may change. A rejected item of a request with many items (207) has `type`, `detail` and `errors` in its `error`: the problem that the item would have met alone, and its `status`."

/** docs/problems.md */
export const markdown = (): string => `# Problems

${intro}
\`type\` is relative to the address of the API, which serves this page at \`${pagePath}\`.

${all
  .map(
    ([type, { meaning, remedy, status, title }]) =>
      `## ${type}\n\n**${status}: ${title}.** ${meaning}\n\n${remedy}\n`,
  )
  .join("\n")}`

const inHtml = (text: string) =>
  Bun.escapeHTML(text).replace(/`([^`]+)`/g, (_, code: string) => `<code>${code}</code>`)

/** The same page, as the API serves it. */
export const html = (): string => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Problems of the API</title>
<h1>Problems of the API</h1>
<p>${inHtml(intro)}</p>
${all
  .map(
    ([type, { meaning, remedy, status, title }]) =>
      `<section id="${type}"><h2>${type}</h2><p><strong>${status}: ${inHtml(title)}.</strong> ${inHtml(meaning)}</p><p>${inHtml(remedy)}</p></section>`,
  )
  .join("\n")}
</html>
`
