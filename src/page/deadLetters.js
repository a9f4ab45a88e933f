/** Dead letters by error and one by one, with a search, and with buttons where they can work. */
import { get, post } from "./api.js"
import { ask, byId, count, documentLink, explained, h, notify, searched, time } from "./dom.js"

/** Errors of messages that this system did not record. They are the same at every attempt. */
const foreign = new Set(["message_id_mismatch", "not_json", "schema_violation", "too_large"])

/** Errors that no retry can solve: also merges that contradict earlier ones. */
const hopeless = new Set([...foreign, "alias_circle", "alias_taken"])

const shownPerGroup = 20
let open = null
/** What is searched for: user, product, error. */
let wanted = new URLSearchParams()
/** Whether buttons can work, and whether a token would make them work. */
let mayAct = false
let wantsToken = true

/** Further loads of the list: a retried message may become a dead letter again. */
let reloads = 0
let lastCount
let foreignCount = 0
let loading = false
let loadedAt = Number.NEGATIVE_INFINITY
let pauseUntil = 0

/** RabbitMQ does not count messages that the API is listing, nor for a moment after it. */
export const listing = () => loading || performance.now() < loadedAt + 1_500

/** Dead letters that are not of the log. */
export const foreignDeadLetters = () => foreignCount

/** Receives every count. Loads the list when the count changes, less often when loading is slow. */
export const counted = (failed) => {
  if (failed === lastCount && reloads === 0) return
  if (loading || performance.now() < pauseUntil) return
  lastCount = failed
  reloads = Math.max(0, reloads - 1)
  refresh()
}

/** Shows buttons only where they can work. */
export const allow = (allowed, tokensExist = wantsToken) => {
  mayAct = allowed
  wantsToken = tokensExist
  if (lastCount !== undefined) refresh()
}

byId("dead-letters-form").addEventListener("submit", (event) => {
  event.preventDefault()
  wanted = new URLSearchParams(searched(event.target))
  refresh()
})

const act = async (path, picked, done) => {
  try {
    notify(done(await post(path, picked)))
  } catch (error) {
    notify(error.message, "refused")
  }
  reloads = 5
  await refresh()
}
const retry = (picked) =>
  act("/api/dead-letters/retry", picked, ({ retried }) => `${count(retried)} published again`)
const remove = async (picked, what, error) => {
  const answer = await ask(
    "Remove dead letters?",
    [
      h(
        "p",
        {},
        `${what} will be deleted. ${
          foreign.has(error)
            ? "The log has no event for it: its body is lost for good."
            : "An event that this system recorded stays in the log, and a replay can still apply it. A message that another program published is lost for good."
        } `,
        documentLink("operations.md#replay", "Replay"),
      ),
    ],
    [
      { label: "Keep", value: "", kind: "" },
      { label: "Remove", value: "yes", kind: "" },
    ],
  )
  if (answer === "yes")
    await act("/api/dead-letters/remove", picked, ({ removed }) => `${count(removed)} removed`)
}

/** The message without the name of the error, which the row already shows. */
const reason = (message, error) =>
  message?.startsWith(`${error}: `) ? message.slice(error.length + 2) : (message ?? "")

const attemptsText = (attempts) => attempts > 1 && `${count(attempts)} attempts`

const pretty = (body) => {
  try {
    return JSON.stringify(JSON.parse(body), null, 2)
  } catch {
    return body
  }
}

const showOne = async (id) => {
  try {
    const { items } = await get(`/api/dead-letters/${encodeURIComponent(id)}`)
    await ask(
      "Dead letter",
      items.map(({ body, body_base64, ...facts }) =>
        h(
          "div",
          { class: "dead-letter" },
          h(
            "dl",
            {},
            ...Object.entries(facts)
              .filter(([, value]) => value !== null)
              .flatMap(([name, value]) => [
                h("dt", {}, name.replaceAll("_", " ")),
                h("dd", {}, String(value)),
              ]),
          ),
          h(
            "pre",
            { tabindex: 0, role: "region", "aria-label": "Message body" },
            body === null ? `base64: ${body_base64}` : pretty(body),
          ),
        ),
      ),
      [{ label: "Close", value: "", kind: "" }],
    )
  } catch (error) {
    notify(error.message, "refused")
  }
}

const button = (label, name, onclick) =>
  h("button", { type: "button", class: "small", "aria-label": name, onclick }, label)

const deadLetterRow = (deadLetter) => {
  const { attempts, error, event_type, id, last_failed_at, message, message_id, product_id, user_id } =
    deadLetter
  const key = id ?? message_id
  const picked = { ids: [key] }
  return h(
    "tr",
    {},
    h(
      "td",
      { class: "what" },
      h(
        "span",
        {},
        user_id === null ? "unreadable" : `${event_type ?? "event"} of user `,
        user_id !== null && h("a", { href: `#user=${encodeURIComponent(user_id)}` }, user_id),
        product_id !== null && `, product ${product_id}`,
      ),
      h(
        "small",
        {},
        [
          key === null ? "without an id" : `${key.slice(0, 8)}…`,
          attemptsText(attempts),
          reason(message, error),
        ]
          .filter(Boolean)
          .join(" · "),
      ),
    ),
    h("td", { class: "number" }),
    h("td", { class: "when" }, time(last_failed_at)),
    h(
      "td",
      { class: "actions" },
      key && button("Show", `Show the dead letter ${key}`, () => showOne(key)),
      mayAct &&
        key &&
        !hopeless.has(error) &&
        button("Retry", `Retry the dead letter ${key}`, () => retry(picked)),
      mayAct &&
        key &&
        button("Remove", `Remove the dead letter ${key}`, () => remove(picked, "This dead letter", error)),
    ),
  )
}

const groupRows = (group, items) => {
  const { count: n, error, example, last_failed_at } = group
  const picked = { error }
  const isOpen = open === error
  // A button for all of a group acts on all of them, not only on those that the search shows.
  const isNarrowed = wanted.has("user") || wanted.has("product")
  const actsOnAll = mayAct && error !== null && !isNarrowed
  const toggle = () => {
    open = isOpen ? null : error
    refresh()
  }
  return h(
    "tbody",
    {},
    h(
      "tr",
      { class: "group" },
      h(
        "td",
        { class: "what" },
        h(
          "button",
          { type: "button", class: "disclose", "aria-expanded": String(isOpen), onclick: toggle },
          error ?? "unknown",
        ),
        h("small", {}, reason(example.message, error)),
        hopeless.has(error) &&
          h(
            "small",
            {},
            explained(
              "no retry",
              "The message fails the same way at every attempt: correct the program that sent it.",
            ),
          ),
      ),
      h("td", { class: "number" }, h("b", {}, count(n))),
      h("td", { class: "when" }, time(last_failed_at)),
      h(
        "td",
        { class: "actions" },
        actsOnAll &&
          !hopeless.has(error) &&
          button("Retry all", `Retry all of ${error}`, () => retry(picked)),
        actsOnAll &&
          button("Remove all", `Remove all of ${error}`, () =>
            remove(picked, `${count(n)} dead letter${n === 1 ? "" : "s"} of ${error}`, error),
          ),
      ),
    ),
    ...items.map(deadLetterRow),
    items.length > 0 &&
      n > items.length &&
      h("tr", {}, h("td", { class: "what quiet", colspan: 4 }, `${items.length} of ${count(n)} are shown`)),
  )
}

export const refresh = async () => {
  const started = performance.now()
  loading = true
  await show()
  loading = false
  loadedAt = performance.now()
  pauseUntil = loadedAt + 3 * (loadedAt - started)
}

/** Replaces the children and keeps the focus on the button with the same name. */
const put = (place, ...children) => {
  const name = (button) => button.getAttribute("aria-label") ?? button.textContent
  const focused = place.contains(document.activeElement) ? name(document.activeElement) : undefined
  place.replaceChildren(...children)
  if (focused !== undefined)
    [...place.querySelectorAll("button")].find((button) => name(button) === focused)?.focus()
}

/** Why there are no buttons. */
const actionsNote = () => {
  if (mayAct) return []
  return wantsToken
    ? ["To retry or remove, give a token with the button Token. "]
    : [
        "To retry or remove here, set ",
        h("code", {}, "API_TOKENS"),
        " and start the API again; or use ",
        h("code", {}, "user-embeddings failed"),
        ". ",
      ]
}

/** How often the list was asked for. */
let asked = 0

const show = async () => {
  const place = byId("dead-letters")
  const number = ++asked
  try {
    const { groups } = await get(`/api/dead-letters/groups?${wanted}`)
    if (wanted.size === 0)
      foreignCount = groups.reduce((sum, { count: n, error }) => sum + (foreign.has(error) ? n : 0), 0)
    const isOpen = groups.some(({ error }) => error === open)
    const ofOpen = new URLSearchParams([...wanted.entries(), ["limit", shownPerGroup]])
    if (isOpen) ofOpen.set("error", open)
    const items = isOpen ? (await get(`/api/dead-letters?${ofOpen}`)).items : []
    // Another search has begun meanwhile. The buttons must be those of the count.
    if (number !== asked) return
    const total = groups.reduce((sum, { count: n }) => sum + n, 0)
    byId("dead-letters-count").textContent = total === 0 ? "" : count(total)
    if (groups.length === 0)
      return put(
        place,
        h(
          "p",
          { class: "quiet" },
          wanted.size === 0
            ? "None: every message was applied or is in flight."
            : "No dead letter matches the search.",
        ),
      )
    put(
      place,
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Error"),
            h("th", { scope: "col", class: "number" }, "Count"),
            h("th", { scope: "col" }, "Last"),
            h("th", { scope: "col" }, h("span", { class: "hidden" }, "Actions")),
          ),
        ),
        ...groups.map((group) => groupRows(group, group.error === open ? items : [])),
      ),
      h(
        "p",
        { class: "quiet note" },
        ...actionsNote(),
        documentLink("runbook.md#deadlettersgrowing", "What each error means"),
      ),
    )
  } catch (error) {
    if (number === asked) put(place, h("p", { class: "quiet" }, error.message))
  }
}
