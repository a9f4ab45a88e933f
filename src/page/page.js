/** Starts the parts of the page; handles theme, token, keyboard and address. */
import { follow, readiness, setToken, token } from "./api.js"
import * as deadLetters from "./deadLetters.js"
import { ask, byId, h, notify } from "./dom.js"
import { system } from "./system.js"
import * as user from "./user.js"

const { traces } = await (await fetch("/page/config.json")).json()
if (traces !== null)
  byId("traces").replaceWith(h("a", { href: traces, target: "_blank", rel: "noreferrer" }, "Traces"))
else byId("traces").remove()

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
  start()
  deadLetters.refresh()
  showUser()
}
byId("token").addEventListener("click", () =>
  askToken(
    "Without API_TOKENS everything here works on this machine. From another machine, retrying and removing dead letters needs a token.",
  ),
)

/** Replaces the text only when it changes, so that a screen reader reads it once. */
const showTrouble = (texts) => {
  if (byId("trouble").textContent === texts.join("")) return
  byId("trouble").replaceChildren(...texts.map((text) => h("p", {}, text)))
}
const brief = (text) => (text.length > 200 ? `${text.slice(0, 199)}…` : text)

const showDependencies = async () => {
  try {
    const { dependencies } = await readiness()
    showTrouble(
      Object.entries(dependencies)
        .filter(([, { status }]) => status !== "up")
        .map(([name, { detail, status }]) => brief(`${name} is ${status}${detail ? `: ${detail}` : ""}`)),
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
    showTrouble(["The API does not answer. This page shows the last figures it received."])
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
