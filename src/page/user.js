/** One user: figures of the vector, its events and their decay, recommended products, similar users. */
import { get } from "./api.js"
import { byId, count, documentLink, explained, h, percent, since, svg, time } from "./dom.js"

/** The word of an event type: `product_view` is "view", a type of the shop's own is its name. */
const kindOf = (type) => type.replace(/^product_/, "")
const chip = (type) => h("span", { class: "chip" }, kindOf(type))
const bar = (share) =>
  h("span", { class: "track" }, h("i", { class: "fill", width: `${Math.max(0, Math.min(1, share)) * 100}%` }))
const fact = (name, value, meaning) =>
  h("div", {}, h("dt", {}, explained(name, meaning)), h("dd", { title: value }, value))
const small = (n) => (n === 0 ? "0" : Number(n.toPrecision(4)).toString())

const facts = (profile) =>
  h(
    "dl",
    { class: "facts card" },
    fact("Events", count(profile.event_count), "Applied events that are not taken back."),
    fact(
      "Last event",
      since(profile.last_updated),
      `The newest applied event occurred at ${profile.last_updated}.`,
    ),
    fact("Known for", since(profile.created_at).replace(" ago", ""), `Since ${profile.created_at}.`),
    fact("Norm", profile.norm.toFixed(6), "Length of the stored vector: always 1."),
    fact(
      "Mass",
      small(profile.mass),
      "Length of the decayed sum behind the vector, before it was made unit length.",
    ),
    fact("Weight", small(profile.total_weight), "Decayed weight of all events together."),
    fact(
      "History",
      profile.history,
      "Cumulative: every event counts, less with its age. Recency: the newest event counts most.",
    ),
    fact("Version", count(profile.version), "Writes of this user's record."),
    fact("Space", profile.space, `The embedding model. Vectors have ${profile.dimension_count} dimensions.`),
  )

/** The remaining weight of an event over days, with the events of the user on the curve. */
const decayCurve = ({ events, last_updated, metadata }) => {
  // The real width on the screen, so that its text has the size of the other text.
  const columns = matchMedia("(max-width: 900px)").matches ? 1 : 2
  const [width, height, left, bottom] = [(byId("profile").clientWidth - 14) / columns - 27, 130, 8, 18]
  const days = (iso) => (Date.parse(last_updated) - Date.parse(iso)) / 86_400_000
  const span = Math.max(30, ...events.map(({ occurred_at }) => days(occurred_at))) * 1.04
  const x = (age) => left + (width - 2 * left) * (1 - age / span)
  const y = (kept) => 8 + (height - bottom - 8) * (1 - kept)
  const kept = (age) => Math.exp(-metadata.decay_lambda * age)
  const within = events.filter(({ share }) => share !== null)
  const points = Array.from({ length: 81 }, (_, i) => (span * i) / 80)
  const line = points
    .map((age, i) => `${i === 0 ? "M" : "L"}${x(age).toFixed(1)} ${y(kept(age)).toFixed(1)}`)
    .join("")
  const label = `Decay: an event keeps ${percent(kept(30))} of its weight after 30 days`
  const ticks = [0, 0.25, 0.5, 0.75].map((part) => Math.round(span * part))
  return h(
    "figure",
    { class: "card decay" },
    h(
      "figcaption",
      {},
      h("h3", {}, "Decay"),
      h("span", { class: "quiet" }, `${percent(kept(30))} left after 30 days`),
    ),
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      svg("path", { class: "area", d: `${line}L${x(span)} ${y(0)}L${x(0)} ${y(0)}Z` }),
      svg("path", { class: "curve", d: line }),
      ...ticks.map((age) => {
        const text = svg("text", { x: x(age), y: height - 4, "text-anchor": age === 0 ? "end" : "middle" })
        text.textContent = age === 0 ? "newest" : `${age} d before`
        return text
      }),
      ...within.map(({ event_type, occurred_at, reference, share }) => {
        const age = days(occurred_at)
        const title = svg("title")
        title.textContent = `${kindOf(event_type)} ${reference}: ${percent(share)} of the weight`
        return svg(
          "circle",
          {
            cx: x(age),
            cy: y(kept(age)),
            r: 3 + 9 * Math.sqrt(Math.max(0, share)),
          },
          title,
        )
      }),
    ),
  )
}

const shareOf = (share, most) =>
  share === null
    ? h(
        "td",
        {
          class: "share quiet",
        },
        explained("not counted", "Not applied: the event is in flight, or its product has no embedding."),
      )
    : h("td", { class: "share" }, bar(most === 0 ? 0 : share / most), h("b", {}, percent(share)))

/** Shows the rows that have the text in any column. */
const filterRows = (input) => {
  const text = input.value.trim().toLowerCase()
  for (const row of input.closest(".events").querySelectorAll("tbody tr"))
    row.hidden = !`${row.textContent} ${row.dataset.reference}`.toLowerCase().includes(text)
}

const eventsTable = ({ event_count, events }, traces) => {
  const most = Math.max(0, ...events.map(({ share }) => share ?? 0))
  return h(
    "div",
    { class: "card events" },
    h(
      "h3",
      {},
      "Events ",
      h(
        "span",
        { class: "count" },
        event_count > events.length
          ? `newest ${events.length} of ${count(event_count)}`
          : count(events.length),
      ),
    ),
    h("input", {
      type: "search",
      class: "narrow",
      placeholder: "product, phrase or type",
      "aria-label": "Filter these events by product, phrase or type",
      oninput: ({ target }) => filterRows(target),
    }),
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "Event"),
          h("th", { scope: "col" }, "What"),
          h(
            "th",
            { scope: "col" },
            explained(
              "Share of weight",
              "The decayed weight of the event, as a part of the weight of all events behind the stored vector. The shares of a score, beside recommended products, are others.",
            ),
          ),
          h("th", { scope: "col" }, "When"),
        ),
      ),
      h(
        "tbody",
        {},
        ...events.map(({ event_type, occurred_at, product_name, reference, share, trace_id }) =>
          h(
            "tr",
            { "data-reference": reference },
            h("td", {}, chip(event_type)),
            h(
              "td",
              { class: "what" },
              h(
                "span",
                { class: event_type === "search" ? "phrase" : "", title: reference },
                product_name ?? reference,
              ),
            ),
            shareOf(share, most),
            h(
              "td",
              { class: "when" },
              traces && trace_id
                ? h(
                    "a",
                    {
                      href: `${traces}/trace/${trace_id}`,
                      target: "_blank",
                      rel: "noreferrer",
                      title: "Open its trace",
                    },
                    time(occurred_at),
                  )
                : time(occurred_at),
            ),
          ),
        ),
      ),
    ),
  )
}

const reasons = ({ because, rest }, names) =>
  h(
    "ul",
    { class: "reasons" },
    ...because
      .filter(({ share }) => Math.abs(share) >= 0.005)
      .slice(0, 3)
      .map(({ event_type, product_id, search_phrase, share }) =>
        h(
          "li",
          {},
          `${kindOf(event_type)} ${search_phrase ? `“${search_phrase}”` : (names.get(product_id) ?? product_id)} `,
          h("b", {}, percent(share)),
        ),
      ),
    rest > 0.005 && h("li", {}, "older ", h("b", {}, percent(rest))),
  )

const scoreParts = ["similarity", "popularity", "together", "again"]

const scoreMeaning =
  "Score = similarity + popularity + together + again. Similarity is the cosine of the user's taste and the product, both centred; `user show` names the products nearest to the stored vector instead. The percentages below a product are the shares of its score that the user's events give."

const recommended = (
  { items, source },
  names,
  mostScore = Math.max(1.25, ...items.map(({ score }) => score)),
) =>
  h(
    "div",
    { class: "card" },
    h(
      "h3",
      {},
      source === "taste" ? "Recommended products " : "Popular products ",
      h(
        "span",
        { class: "count" },
        source === "taste" ? explained("by score", scoreMeaning) : "no taste yet",
        " ",
        documentLink("concepts.md#why-a-product-is-recommended", "explained"),
      ),
    ),
    items.length === 0
      ? h("p", { class: "quiet" }, "None yet.")
      : h(
          "ol",
          { class: "products" },
          ...items.map((item) =>
            h(
              "li",
              {},
              h(
                "span",
                { class: "name" },
                item.product_name ?? item.product_id,
                h("small", {}, [item.category, item.product_id].filter(Boolean).join(" · ")),
              ),
              h(
                "span",
                {
                  class: "score",
                  title: `${item.score.toFixed(4)} = ${scoreParts.map((part) => `${part} ${item[part].toFixed(4)}`).join(" + ")}`,
                },
                h(
                  "span",
                  { class: "track" },
                  h("i", {
                    class: "fill",
                    width: `${(Math.max(0, item.similarity) / mostScore) * 100}%`,
                  }),
                  h("i", {
                    class: "fill light",
                    width: `${((item.popularity + item.together + item.again) / mostScore) * 100}%`,
                  }),
                ),
                h("b", {}, item.score.toFixed(2)),
              ),
              reasons(item, names),
            ),
          ),
        ),
  )

const similarUsers = (similar, inspect) =>
  h(
    "div",
    { class: "card" },
    h(
      "h3",
      {},
      "Similar users ",
      h(
        "span",
        { class: "count" },
        similar.compared === undefined ? "" : `of ${count(similar.compared)}, `,
        explained(
          "by cosine",
          "Cosine of the long memories of the two users: of all their events, without the newest ones' extra weight.",
        ),
      ),
    ),
    similar.items.length === 0
      ? h("p", { class: "quiet" }, similar.detail ?? "There are no other users yet.")
      : h(
          "ol",
          { class: "similar-users" },
          ...similar.items.map(({ similarity, user_id }) =>
            h(
              "li",
              {},
              h("button", { type: "button", class: "link", onclick: () => inspect(user_id) }, user_id),
              bar(similarity),
              h("b", {}, similarity.toFixed(2)),
            ),
          ),
        ),
  )

let pending
/** Shows a user. Cancels the requests for the user before. */
export const show = async (user, traces) => {
  pending?.abort()
  pending = new AbortController()
  const { signal } = pending
  const place = byId("profile")
  const id = encodeURIComponent(user)
  const inspect = (other) => {
    location.hash = `user=${encodeURIComponent(other)}`
  }
  place.setAttribute("aria-busy", "true")
  try {
    const [profile, products, similar] = await Promise.all([
      get(`/api/user/${id}/profile`, signal),
      get(`/api/user/${id}/recommendations?exclude=none&limit=10`, signal),
      get(`/api/user/${id}/similar?limit=8`, signal).catch((error) => ({ items: [], detail: error.message })),
    ])
    const names = new Map(
      [
        ...profile.events.map(({ product_name, reference: id }) => [id, product_name]),
        ...products.items.map(({ product_id: id, product_name }) => [id, product_name]),
      ].filter(([, name]) => name !== null),
    )
    place.replaceChildren(
      facts(profile),
      h(
        "div",
        { class: "columns" },
        h("div", {}, eventsTable(profile, traces), decayCurve(profile), similarUsers(similar, inspect)),
        h("div", {}, recommended(products, names)),
      ),
    )
  } catch (error) {
    if (signal.aborted) return
    place.replaceChildren(h("p", { class: "card quiet" }, error.message))
  }
  place.removeAttribute("aria-busy")
}
