/** Starts the parts of the page; handles theme, token, keyboard and address. */
import { follow, readiness, setToken, token } from "./api.js"
import * as deadLetters from "./deadLetters.js"
import { ask, byId, documentLink, h, notify } from "./dom.js"
import "./events.js"
import { system } from "./system.js"
import * as user from "./user.js"

const { actions, traces } = await (await fetch("/page/config.json")).json()
if (traces !== null)
  byId("traces").replaceWith(h("a", { href: traces, target: "_blank", rel: "noreferrer" }, "Traces"))
else byId("traces").remove()

const zone = Intl.DateTimeFormat("en-GB", { timeZoneName: "shortOffset" })
  .formatToParts()
  .find(({ type }) => type === "timeZoneName").value
byId("time-zone").textContent =
  `Times are local: ${Intl.DateTimeFormat().resolvedOptions().timeZone} (${zone})`

const firstCommand = [
  `curl -X POST ${location.origin}/api/user/123/search`,
  ...(actions === "token" ? ['-H "authorization: Bearer $TOKEN"'] : []),
  "-H 'content-type: application/json'",
  `-d '{"query":"wireless headphones"}'`,
]
byId("first-command").textContent = firstCommand.join(" \\\n  ")
byId("copy-command").addEventListener("click", async () => {
  await navigator.clipboard.writeText(firstCommand.join(" "))
  notify("Copied")
})
// Clipboards need HTTPS or localhost.
byId("copy-command").hidden = navigator.clipboard === undefined

// The theme of the operating system, until the user chooses one.
const themes = ["auto", "light", "dark"]
const parts = system()
const setTheme = (theme) => {
  document.documentElement.dataset.theme = theme
  localStorage.setItem("user-embeddings theme", theme)
  byId("theme").textContent = `Theme: ${theme}`
  parts.draw()
}
const nextTheme = () =>
  setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length])
const remembered = localStorage.getItem("user-embeddings theme")
setTheme(themes.includes(remembered) ? remembered : "auto")
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => parts.draw())
byId("theme").addEventListener("click", nextTheme)

// Live figures.
const connection = byId("connection")
let failed = 0
let stop = () => {}
const start = () => {
  stop()
  stop = follow(
    "/api/system/events",
    (stats) => {
      // While the API lists dead letters, the queue does not count them.
      if (stats.queues && deadLetters.listing()) stats.queues.failed = Math.max(failed, stats.queues.failed)
      failed = stats.queues?.failed ?? failed
      parts.show(stats)
      deadLetters.counted(stats.queues?.failed)
    },
    (state, why) => {
      if (state === "live") parts.loadHistory()
      connection.textContent = { live: "live", lost: "reconnecting…", refused: "token needed" }[state]
      connection.className = `connection ${state}`
      if (state === "refused") askToken(why)
    },
  )
}

const askToken = async (why) => {
  const input = h("input", { id: "token-value", type: "password", autocomplete: "off", value: token() })
  const answer = await ask(
    "Token",
    [h("p", {}, why), h("label", { for: "token-value" }, "One of API_TOKENS, with the scope operate"), input],
    [
      { label: "Cancel", value: "", kind: "" },
      { label: "Use it", value: "yes", kind: "primary" },
    ],
  )
  if (answer !== "yes") return
  setToken(input.value.trim())
  notify("The token is kept until this tab is closed")
  deadLetters.allow(mayAct())
  start()
  showUser()
}
byId("token").addEventListener("click", () =>
  askToken("A token is needed to read the figures, and to retry or remove dead letters."),
)
// Without API_TOKENS a token is of no use.
byId("token").hidden = actions !== "token"

/** Whether dead letters can be retried and removed. */
const mayAct = () => actions === "open" || (actions === "token" && token() !== "")
deadLetters.allow(mayAct(), actions === "token")

/** Replaces the text only when it changes, so that a screen reader reads it once. */
const showTrouble = (troubles) => {
  const all = troubles.map(({ text }) => text).join("\n")
  if (byId("trouble").dataset.all === all) return
  byId("trouble").dataset.all = all
  byId("trouble").replaceChildren(
    ...troubles.map(({ level, text }) =>
      h(
        "p",
        { class: level },
        h("span", {}, text),
        documentLink("troubleshooting.md#troubleshooting-by-symptom", "What to do"),
      ),
    ),
  )
}
const brief = (text) => (text.length > 200 ? `${text.slice(0, 199)}…` : text)

const showDependencies = async () => {
  try {
    const { dependencies } = await readiness()
    showTrouble(
      Object.entries(dependencies)
        .filter(([, { status }]) => status !== "up")
        .map(([name, { detail, status }]) => ({
          level: status === "down" ? "critical" : "warning",
          text: brief(`${name} is ${status}${detail ? `: ${detail}` : ""}`),
        })),
    )
    byId("dependencies").replaceChildren(
      ...Object.entries(dependencies).map(([name, { detail, status }]) =>
        h(
          "li",
          { class: status, title: detail ?? status },
          h("i", { class: "lamp" }),
          name,
          h("span", { class: "hidden" }, ` ${status}`),
        ),
      ),
    )
  } catch {
    showTrouble([
      { level: "critical", text: "The API does not answer. This page shows the last figures it received." },
    ])
    byId("dependencies").replaceChildren(
      h("li", { class: "down" }, h("i", { class: "lamp" }), "API", h("span", { class: "hidden" }, " down")),
    )
  }
}
setInterval(showDependencies, 5_000)

// The address names the user, so that a link shows the same user.
const showUser = () => {
  const id = new URLSearchParams(location.hash.slice(1)).get("user")
  if (!id) return
  byId("user").value = id
  user.show(id, traces)
}
addEventListener("hashchange", showUser)
byId("user-form").addEventListener("submit", (event) => {
  event.preventDefault()
  const id = byId("user").value.trim()
  if (id === "") return
  const hash = `#user=${encodeURIComponent(id)}`
  if (location.hash === hash) showUser()
  else location.hash = hash
})

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, dialog")) return
  if (event.key === "/") {
    event.preventDefault()
    byId("user").focus()
    byId("user").select()
  }
  if (event.key === "t") nextTheme()
})

start()
showDependencies()
showUser()
