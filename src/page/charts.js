/** Line charts of the last minutes, in the colours of the theme. */
import uPlot from "/page/uPlot.js"
import { h } from "./dom.js"

const height = 132
/** Seconds shown at most, and at least. */
const longest = 600
const shortest = 30

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

/** Steps of an axis that shows whole numbers. */
const whole = [1, 2, 5]
  .flatMap((n) => Array.from({ length: 9 }, (_, power) => n * 10 ** power))
  .sort((a, b) => a - b)

const options = ({ counted, series, value }, place) => {
  const axis = {
    stroke: colour("--muted"),
    font: "11px Inter, system-ui, sans-serif",
    ticks: { show: false },
  }
  return {
    width: Math.max(200, place.clientWidth),
    height,
    padding: [8, 4, 0, 0],
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time: true, range: (_, min, max) => [Math.min(min, max - shortest), max] },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 24,
        space: 70,
        values: (_, ticks) => ticks.map((tick) => new Date(tick * 1_000).toLocaleTimeString("en-GB")),
      },
      {
        ...axis,
        grid: { stroke: colour("--line"), width: 1 },
        size: 46,
        space: 30,
        values: (_, ticks) => ticks.map(value),
        ...(counted && { incrs: whole }),
      },
    ],
    series: [
      {},
      ...series.map((one) => ({
        stroke: colour(one.colour),
        width: 1.5,
        fill: one.fill ? `${colour(one.colour)}1f` : undefined,
        points: { show: false },
        spanGaps: false,
      })),
    ],
  }
}

/**
 * `series`: [{ label, colour (a variable of the style sheet), fill }]. `counted`: the axis shows only whole
 * numbers. `add(seconds, values)` appends a point.
 */
export const chart = (figure, kind) => {
  const { series, title, value } = kind
  const legend = h("ul", { class: "legend" })
  const place = h("div", { class: "plot", role: "img", "aria-label": title })
  figure.replaceChildren(h("figcaption", {}, h("h2", {}, title), legend), place)
  const data = [[], ...series.map(() => [])]
  let plot

  const draw = () => {
    plot?.destroy()
    if (data[0].length === 0) return
    plot = new uPlot(options(kind, place), data, place)
  }
  const observer = new ResizeObserver(() =>
    plot?.setSize({ width: Math.max(200, place.clientWidth), height }),
  )

  return {
    draw: () => {
      draw()
      observer.observe(place)
    },
    add: (now, values) => {
      data[0].push(now)
      for (const [i, one] of values.entries()) data[i + 1].push(one ?? null)
      while (data[0].length > 1 && data[0][0] < now - longest) for (const column of data) column.shift()
      const figures = series.map(({ label }, i) => [label, value(values[i] ?? null)])
      legend.replaceChildren(
        ...series.map((one, i) =>
          h(
            "li",
            {},
            h("i", { class: `dot ${one.colour.slice(2)}` }),
            `${one.label} `,
            h("b", {}, figures[i][1]),
          ),
        ),
      )
      place.setAttribute("aria-label", `${title}: ${figures.map((pair) => pair.join(" ")).join(", ")}`)
      if (plot === undefined) draw()
      else plot.setData(data)
    },
  }
}
