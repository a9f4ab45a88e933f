/** Reads a worker's /metrics. */
import type { Part } from "./arena.ts"

const scrape = async ({ port }: Part): Promise<string> =>
  (await fetch(`http://127.0.0.1:${port}/metrics`)).text()

/** The sum of all series of a counter. */
export const counter = async (part: Part, name: string): Promise<number> =>
  [...(await scrape(part)).matchAll(new RegExp(`^${name}(?:{[^}]*})? ([\\d.e+]+)$`, "gm"))].reduce(
    (sum, [, value]) => sum + Number(value),
    0,
  )

/** Cumulative counts by upper bound in seconds. */
export type Histogram = ReadonlyMap<number, number>

export const histogram = async (part: Part, name: string): Promise<Histogram> =>
  new Map(
    [
      ...(await scrape(part)).matchAll(new RegExp(`^${name}_bucket{[^}]*le="([^"]+)"[^}]*} (\\d+)$`, "gm")),
    ].map(([, most = "", count]) => [
      most === "+Inf" ? Number.POSITIVE_INFINITY : Number(most),
      Number(count),
    ]),
  )

/** The quantile of the observations between two scrapes, linear within a bucket. */
export const quantile = (before: Histogram, after: Histogram, share: number): number => {
  const counts = [...after]
    .map(([most, count]) => [most, count - (before.get(most) ?? 0)] as const)
    .toSorted(([a], [b]) => a - b)
  const wanted = (counts.at(-1)?.[1] ?? 0) * share
  let [least, below] = [0, 0]
  for (const [most, count] of counts) {
    if (count >= wanted && count > below)
      return Number.isFinite(most) ? least + ((most - least) * (wanted - below)) / (count - below) : most
    ;[least, below] = [most, count]
  }
  return Number.NaN
}
