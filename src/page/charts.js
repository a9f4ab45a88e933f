/** Line charts as inline SVG. Lines differ in strength and dashes: colour is for what a person should act on. */
import { h, svg } from "./dom.js"

const height = 132
const left = 52
const bottom = 18
const top = 8
/** At most so many points are drawn; each shows the greatest value of its part of the time. */
const most = 240
/** Seconds without a point that break a line, at least. */
const leastGap = 150

/** The smallest of 1, 2, 5, 10, 20 … that is at least this. */
const roundUp = (n) => {
  const power = 10 ** Math.floor(Math.log10(n))
  return [1, 2, 5, 10].find((step) => step * power >= n * 0.999_999) * power
}

/** Steps of an axis of seconds that make round labels. */
const timeSteps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 18_000, 43_200, 86_400]

/** Two or three steps from 0 to at least the greatest value. `unit`: `count` for whole numbers, `time` for seconds. */
const scale = (greatest, unit) => {
  const least = (greatest || 1) / 3
  const ofTime = unit === "time" && least > 1 ? timeSteps.find((step) => step >= least) : undefined
  const step = ofTime ?? Math.max(roundUp(least), unit === "count" ? 1 : 0)
  return { step, end: step * Math.max(1, Math.ceil((greatest || 1) / step)) }
}

const clock = (seconds, withSeconds) =>
  new Date(seconds * 1_000).toLocaleTimeString("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    ...(withSeconds && { second: "2-digit" }),
  })

/** Seconds between labels of the time axis, for a range in seconds. */
const timeStep = (range) =>
  [60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600].find((step) => range / step <= 5) ?? 43_200

/** Labels at round local times. */
const timeLabels = (from, to) => {
  const step = timeStep(to - from)
  const offset = new Date(to * 1_000).getTimezoneOffset() * 60
  const first = Math.ceil((from - offset) / step) * step + offset
  return Array.from({ length: Math.floor((to - first) / step) + 1 }, (_, i) => first + i * step)
}

const greater = (a, b) => (a === null ? b : b === null ? a : Math.max(a, b))

/** One point for each part of the time. */
const thinned = (points, from, to) => {
  const width = (to - from) / most
  const parts = new Map()
  for (const { at, values } of points) {
    if (at < from || at > to) continue
    const part = Math.floor((at - from) / width)
    const known = parts.get(part)
    parts.set(part, {
      at,
      values: known ? values.map((value, i) => greater(known.values[i], value)) : values,
    })
  }
  return [...parts.values()]
}

/** The path of a series. It breaks where a value is not known, or where no point is for some time. */
const pathOf = (points, index, longestGap, x, y) => {
  let path = ""
  let last
  for (const { at, values } of points) {
    const value = values[index]
    if (value === null) {
      last = undefined
      continue
    }
    const joins = last !== undefined && at - last <= longestGap
    // A single point shows as a dot, because its line has round ends.
    path += joins
      ? `L${x(at).toFixed(1)} ${y(value).toFixed(1)}`
      : `M${x(at).toFixed(1)} ${y(value).toFixed(1)}h0`
    last = at
  }
  return path
}

/**
 * `series`: [{ label, kind }], where `kind` is a class of the style sheet. `unit`: see `scale`.
 * `show(points, from, to)` draws points `{ at, values }`, whose values are those of the series or `null`; times are Unix
 * seconds.
 */
export const chart = (figure, { help, series, title, unit, value }) => {
  const legend = h("ul", { class: "legend" })
  const plot = h("div", { class: "plot", role: "img", "aria-label": title })
  figure.replaceChildren(h("figcaption", {}, h("h3", {}, h("abbr", { title: help }, title)), legend), plot)
  let shown = { points: [], from: 0, to: 0 }
  /** The point under the pointer. */
  let pointed

  const describe = (point) => {
    const figures = series.map(({ label }, i) => [label, value(point?.values[i] ?? null)])
    legend.replaceChildren(
      ...series.map(({ kind, label }, i) =>
        h("li", {}, h("i", { class: `line ${kind}` }), `${label} `, h("b", {}, figures[i][1])),
      ),
      ...(pointed ? [h("li", { class: "at" }, clock(pointed.at, true))] : []),
    )
    if (!pointed)
      plot.setAttribute("aria-label", `${title}: ${figures.map((pair) => pair.join(" ")).join(", ")}`)
  }

  const draw = () => {
    const { from, points, to } = shown
    const width = Math.max(200, plot.clientWidth)
    const { end, step } = scale(
      Math.max(0, ...points.flatMap(({ values }) => values.filter(Number.isFinite))),
      unit,
    )
    const x = (at) => left + ((width - left - 4) * (at - from)) / Math.max(1, to - from)
    const y = (n) => top + (height - top - bottom) * (1 - n / end)
    const text = (content, attributes) => {
      const element = svg("text", attributes)
      element.textContent = content
      return element
    }
    const longestGap = Math.max(leastGap, (2.5 * (to - from)) / most)
    const levels = Array.from({ length: Math.round(end / step) + 1 }, (_, i) => i * step)
    plot.replaceChildren(
      svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
        ...levels.flatMap((level) => [
          svg("path", { class: "grid", d: `M${left} ${y(level).toFixed(1)}H${width - 4}` }),
          text(value(level), { x: left - 6, y: y(level) + 4, "text-anchor": "end" }),
        ]),
        ...timeLabels(from, to)
          .filter((at) => x(at) > left + 12 && x(at) < width - 18)
          .map((at) => text(clock(at), { x: x(at), y: height - 3, "text-anchor": "middle" })),
        ...series
          .map(({ kind }, index) =>
            svg("path", { class: `series ${kind}`, d: pathOf(points, index, longestGap, x, y) }),
          )
          .reverse(),
        ...(pointed
          ? [svg("path", { class: "pointer", d: `M${x(pointed.at).toFixed(1)} ${top}V${height - bottom}` })]
          : []),
      ),
    )
    describe(pointed ?? points.at(-1))
  }

  plot.addEventListener("pointermove", ({ clientX }) => {
    const { from, points, to } = shown
    const { left: start, width } = plot.getBoundingClientRect()
    const at = from + ((to - from) * (clientX - start - left)) / (width - left - 4)
    pointed = points.reduce(
      (best, point) => (!best || Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best),
      undefined,
    )
    draw()
  })
  plot.addEventListener("pointerleave", () => {
    pointed = undefined
    draw()
  })
  new ResizeObserver(draw).observe(plot)

  return {
    show: (points, from, to) => {
      shown = { points: thinned(points, from, to), from, to }
      pointed = pointed && shown.points.find(({ at }) => at === pointed.at)
      draw()
    },
  }
}
