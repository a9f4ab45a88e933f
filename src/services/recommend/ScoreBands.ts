/** Sorts as many rows by their scores as a search needs: the greatest scores first, as finely as the width of buckets. */

const buckets = 2_048

const bucketOf = (score: number, greatest: number, perUnit: number): number => {
  const bucket = (greatest - score) * perUnit
  // A score may be too low for 32 bits.
  if (bucket < 0) return 0
  return bucket < buckets ? bucket | 0 : buckets
}

export class ScoreBands {
  /** By row. */
  readonly scores: Float32Array
  private readonly band: Uint32Array
  /** Rows in each bucket. The bucket after the last has all lower scores. */
  private readonly counts = new Uint32Array(buckets + 1)
  /** Where the next row of a bucket goes in the band. */
  private readonly places = new Uint32Array(buckets + 1)
  private greatest = 0
  private perUnit = 0
  /** The buckets of the band. */
  private first = 0
  private end = 0

  constructor(rows: number) {
    this.scores = new Float32Array(rows)
    this.band = new Uint32Array(rows)
  }

  /** Forgets all scores. Answers by how much a score may be greater than one before it in the order. */
  begin(greatest: number, least: number): number {
    this.counts.fill(0)
    this.end = 0
    this.greatest = greatest
    this.perUnit = buckets / (greatest - least)
    return 1 / this.perUnit
  }

  /** Takes over the scores of these rows. */
  count(from: number, to: number): void {
    const { counts, greatest, perUnit, scores } = this
    for (let row = from; row < to; row++) {
      const bucket = bucketOf(scores[row]!, greatest, perUnit)
      counts[bucket] = counts[bucket]! + 1
    }
  }

  /** Begins a band of at least `size` rows after the band before it, if there are so many. Answers how many it has. */
  beginBand(size: number): number {
    const { counts, places } = this
    this.first = this.end
    let rows = 0
    for (; this.end <= buckets && rows < size; this.end++) {
      places[this.end] = rows
      rows += counts[this.end]!
    }
    return rows
  }

  /** Puts the rows of the band into their order. */
  sort(from: number, to: number): void {
    const { band, end, first, greatest, perUnit, places, scores } = this
    // Most rows are skipped by their scores. The bucket decides, because a limit is rounded.
    const least = end > buckets ? Number.NEGATIVE_INFINITY : greatest - (end + 1) / perUnit
    for (let row = from; row < to; row++) {
      if (scores[row]! < least) continue
      const bucket = bucketOf(scores[row]!, greatest, perUnit)
      if (bucket < first || bucket >= end) continue
      const place = places[bucket]!
      band[place] = row
      places[bucket] = place + 1
    }
  }

  /** The band, after all rows were sorted. Valid until the next one. */
  sorted(rows: number): Uint32Array {
    return this.band.subarray(0, rows)
  }
}
