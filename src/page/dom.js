/** Elements, numbers and notices. Text from the server is inserted as text and never parsed as HTML. */

/** `h("p", { class: "quiet" }, "text", child)`. A property `on…` is a listener. */
export const h = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "width") element.style.width = value
    else element.setAttribute(name, value === true ? "" : String(value))
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

/** A word with its meaning: on hover, and for a screen reader. */
export const explained = (word, meaning) => h("abbr", { title: meaning }, word)

/** The fields of a form that are filled in, with their values. */
export const searched = (form) =>
  [...new FormData(form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value !== "")

/** `docs/` as this API serves it. */
export const documentLink = (reference, text) => h("a", { href: `/page/docs/${reference}` }, text)

const namespace = "http://www.w3.org/2000/svg"
export const svg = (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(namespace, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  element.append(...children)
  return element
}

export const byId = (id) => document.getElementById(id)

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 })
/** `12,345`; a dash for an unknown number. */
export const count = (n) => (n === null || n === undefined ? "–" : whole.format(n))
export const rate = (perSecond) =>
  perSecond === undefined ? "–" : `${perSecond >= 100 ? whole.format(perSecond) : perSecond.toFixed(1)}/s`
export const percent = (share) =>
  `${(share * 100).toFixed(share > 0 && share < 0.00995 ? 2 : share < 0.0995 ? 1 : 0)} %`
export const seconds = (s) =>
  s === null || s === undefined
    ? "–"
    : s < 1
      ? `${Math.round(s * 1000)} ms`
      : s < 100
        ? `${Number(s.toFixed(s < 10 ? 1 : 0))} s`
        : ago(s)

/** `3 min`, for a number of seconds. */
export const ago = (s) => {
  if (s < 60) return `${Math.max(0, Math.round(s))} s`
  if (s < 3_600) return `${Math.round(s / 60)} min`
  if (s < 86_400) return `${Math.round(s / 3_600)} h`
  return `${Math.round(s / 86_400)} d`
}
export const since = (iso) => (iso ? `${ago((Date.now() - Date.parse(iso)) / 1_000)} ago` : "–")
export const time = (iso) => h("time", { datetime: iso, title: iso }, since(iso))

export const notify = (text, kind = "done") => {
  const notice = h("p", { class: `notice ${kind}` }, text)
  byId("notices").append(notice)
  setTimeout(() => notice.remove(), kind === "done" ? 4_000 : 9_000)
}

/** Opens the dialog and returns the value of the button that closed it, or `""`. */
export const ask = (title, body, buttons) =>
  new Promise((resolve) => {
    const dialog = byId("dialog")
    const close = (answer) => dialog.close(answer)
    dialog.replaceChildren(
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "dialog-title" }, title),
        ...body,
        h(
          "p",
          { class: "buttons" },
          ...buttons.map(({ kind, label, value }) =>
            h(
              "button",
              {
                type: value === "" ? "button" : "submit",
                value,
                class: kind,
                onclick: value === "" ? () => close("") : undefined,
              },
              label,
            ),
          ),
        ),
      ),
    )
    dialog.returnValue = ""
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true })
    dialog.showModal()
  })
