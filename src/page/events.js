/** The events recorded last, by user, product and type. Nothing is loaded before somebody searches. */
import { get } from "./api.js"
import { byId, explained, h, searched, time } from "./dom.js"

const state = (applied) =>
  applied
    ? "applied"
    : explained(
        "not applied",
        "It waits, is a dead letter, or was skipped because its product has no embedding.",
      )

const row = ({ applied, event_type, occurred_at, recorded_at, reference, user_id }) =>
  h(
    "tr",
    {},
    h(
      "td",
      { class: "what" },
      h("span", { title: reference }, `${event_type} ${reference}`),
      h("small", {}, "user ", h("a", { href: `#user=${encodeURIComponent(user_id)}` }, user_id)),
    ),
    h("td", { class: "when" }, state(applied)),
    h("td", { class: "when", title: `occurred at ${occurred_at}` }, time(recorded_at)),
  )

const show = async (parameters) => {
  const place = byId("events")
  try {
    const { items } = await get(`/api/events?${parameters}`)
    if (items.length === 0)
      return place.replaceChildren(
        h("p", { class: "quiet" }, "None of the 1,000 events recorded last matches."),
      )
    place.replaceChildren(
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h("tr", {}, ...["Event", "State", "Recorded"].map((name) => h("th", { scope: "col" }, name))),
        ),
        h("tbody", {}, ...items.map(row)),
      ),
    )
  } catch (error) {
    place.replaceChildren(h("p", { class: "quiet" }, error.message))
  }
}

byId("events-form").addEventListener("submit", (event) => {
  event.preventDefault()
  show(new URLSearchParams([...searched(event.target), ["limit", "20"]]))
})
