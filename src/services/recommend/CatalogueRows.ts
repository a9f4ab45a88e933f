/**
 * The vectors in memory: unit-length vectors in blocks of rows, and their mean. Rows are stored uncentred, so that a change
 * of the mean μ rewrites none of them:
 *
 *     q · centre(v) = (q · v − q · μ) / ‖v − μ‖
 *
 * A large memory also has codes of the rows, to estimate similarities by.
 */
import { Duration } from "effect"
import type { ProductId } from "../model/Interaction.ts"
import type { Product } from "../model/Product.ts"
import * as Taste from "../model/Taste.ts"
import * as Vector from "../model/Vector.ts"
import { type StampSum, type StoredProduct, stampModulus } from "../ports/ProductEmbeddings.ts"
import { BinaryCodes, isSupported } from "./BinaryCodes.ts"

/** Numbers in one block of rows, read in one go (about 2 ms) before other fibers run. */
const blockNumbers = 1 << 21
/** Rows encoded in one go: about 1 ms. */
const rowsEncoded = 32
/** μ is computed again when this share of the catalogue has changed, or this long after the first change. */
const meanMovesAt = 0.01
const meanMovesAfter = Duration.minutes(1)
/** Rows are encoded again when the mean has moved so far, by the square of its distance over that of the rows. */
const codesMoveAt = 0.1
/** Changed rows that are remembered. */
const mostChangedRows = 50_000

/** How much a catalogue holds. */
export interface Bounds {
  /** Products in memory, while the store has a vector index for more. */
  readonly mostProducts: number
  /** Numbers in the vectors of a catalogue without codes: each search compares all its products. */
  readonly mostCompared: number
}

/** Products of the space that are not deleted. Those that are not available count in the mean. */
export class ProductRows {
  tooLarge = false
  private readonly blocks: Array<Float32Array> = []
  mean: Float32Array
  /** By row: 1 / ‖v − μ‖, or 0 for a vector that is the mean. */
  factors: Array<number> = []
  /** `undefined` while there are few numbers. */
  codes: BinaryCodes | undefined
  /** Rows that changed while μ is computed. */
  private changedMeanwhile: Set<number> | undefined
  /** Changes since μ was computed, and when the first of them happened. */
  private changes = 0
  private changedAt = 0
  private meanSquared = 0
  /** By row; `undefined` where a product was removed. */
  readonly products: Array<Product | undefined> = []
  readonly rowOf = new Map<ProductId, number>()
  /** Rows whose product changed, in this order. When there are many, they are forgotten and an epoch begins. */
  readonly changedRows: Array<number> = []
  changeEpoch = 0
  /** Products of the space that are left out, and what is wrong with their vectors. */
  readonly unusable = new Map<ProductId, string>()
  /** When each product was written last, by the clock of its writer. */
  readonly stamps = new Map<ProductId, number>()
  private readonly free: Array<number> = []
  private readonly sum: Float64Array
  /** How many products have an attribute of each name. */
  private readonly attributes = new Map<string, number>()
  private readonly rowsPerBlock: number
  /** With more, the catalogue is too large. */
  mostProducts: number

  constructor(
    readonly space: string,
    readonly dimensions: number,
    private readonly limits: Bounds,
  ) {
    this.mostProducts = limits.mostProducts
    this.rowsPerBlock = Math.max(1, Math.floor(blockNumbers / dimensions))
    this.sum = new Float64Array(dimensions)
    this.mean = new Float32Array(dimensions)
  }

  product(id: ProductId): Product | undefined {
    const row = this.rowOf.get(id)
    return row === undefined ? undefined : this.products[row]
  }

  all(): ReadonlyArray<Product> {
    return this.products.filter((product) => product !== undefined)
  }

  /** A copy: the row may be another product's later. */
  vector(id: ProductId): Float32Array | undefined {
    const row = this.rowOf.get(id)
    return row === undefined ? undefined : this.vectorAt(row).slice()
  }

  centred(id: ProductId): Float32Array | undefined {
    const row = this.rowOf.get(id)
    return row === undefined ? undefined : this.centredAt(row)
  }

  centredAt(row: number): Float32Array {
    const { mean } = this
    const vector = this.vectorAt(row)
    const factor = this.factors[row]!
    const centred = new Float32Array(vector.length)
    for (let i = 0; i < centred.length; i++) centred[i] = (vector[i]! - mean[i]!) * factor
    return centred
  }

  /**
   * Dot product with a row. Four sums, because each addition to one sum waits for the one before. A direction of 64 bits a
   * number, because conversion takes as long as multiplication.
   */
  dot(direction: Float64Array, row: number): number {
    const { length } = direction
    const block = this.blocks[Math.floor(row / this.rowsPerBlock)]!
    const start = (row % this.rowsPerBlock) * length
    let s0 = 0
    let s1 = 0
    let s2 = 0
    let s3 = 0
    let i = 0
    for (; i + 3 < length; i += 4) {
      const at = start + i
      s0 += direction[i]! * block[at]!
      s1 += direction[i + 1]! * block[at + 1]!
      s2 += direction[i + 2]! * block[at + 2]!
      s3 += direction[i + 3]! * block[at + 3]!
    }
    for (; i < length; i++) s0 += direction[i]! * block[start + i]!
    return s0 + s1 + (s2 + s3)
  }

  /** Zero for a unit-length vector that is the mean. */
  centre(unit: Float32Array): Float32Array {
    return Taste.centre(unit, this.mean) ?? new Float32Array(this.dimensions)
  }

  hasAttribute(name: string): boolean {
    return this.attributes.has(name)
  }

  /** Inserts or replaces a product. Removes it when it is deleted, of another space, or its vector can't be used. */
  put({ deleted, embedding, space, updated_at, ...stored }: StoredProduct, now: number): void {
    const { attributes, available, category, product_id, product_name } = stored
    const isOurs = space === this.space
    if (isOurs) this.stamps.set(product_id, updated_at)
    else this.stamps.delete(product_id)
    const problem = isOurs && !deleted ? Vector.problem(embedding, this.dimensions) : undefined
    if (problem === undefined) this.unusable.delete(product_id)
    else this.unusable.set(product_id, problem)
    if (!isOurs || deleted || problem !== undefined) {
      this.remove(product_id, now)
      return
    }
    const unit = Vector.normalise(embedding)
    const existing = this.rowOf.get(product_id)
    if (existing === undefined && this.rowOf.size >= this.mostProducts) {
      this.tooLarge = true
      return
    }
    const row = existing ?? this.free.pop() ?? this.products.length
    if (existing === undefined || !this.isSame(row, unit)) {
      if (row === this.blocks.length * this.rowsPerBlock)
        this.blocks.push(new Float32Array(this.rowsPerBlock * this.dimensions))
      if (existing !== undefined) Vector.addScaled(this.sum, -1, this.vectorAt(row))
      this.vectorAt(row).set(unit)
      Vector.addScaled(this.sum, 1, unit)
      this.factors[row] = this.factorOf(row, this.mean, this.meanSquared)
      this.codes?.set(row, unit)
      this.changedMeanwhile?.add(row)
      this.countChange(now)
    }
    this.countAttributes(this.products[row], -1)
    this.products[row] = { product_id, product_name, category, available, attributes }
    this.countAttributes(this.products[row], 1)
    this.rowOf.set(product_id, row)
    this.noteChange(row)
  }

  remove(id: ProductId, now: number): void {
    const row = this.rowOf.get(id)
    if (row === undefined) return
    Vector.addScaled(this.sum, -1, this.vectorAt(row))
    this.rowOf.delete(id)
    this.countAttributes(this.products[row], -1)
    this.products[row] = undefined
    this.free.push(row)
    this.noteChange(row)
    this.countChange(now)
  }

  /** As the store computes it. */
  stampSum(): StampSum {
    let sum = 0
    for (const stamp of this.stamps.values()) sum += stamp % stampModulus
    return { count: this.stamps.size, sum }
  }

  /** Removes the products that the store no longer has. */
  keepOnly(existing: ReadonlySet<ProductId>, now: number): void {
    for (const id of this.stamps.keys()) {
      if (existing.has(id)) continue
      this.stamps.delete(id)
      this.unusable.delete(id)
      this.remove(id, now)
    }
  }

  /** Ends the limit. */
  holdAll(): void {
    this.mostProducts = Number.POSITIVE_INFINITY
    this.tooLarge = false
  }

  /** Removes all products and keeps μ. */
  clear(): void {
    for (const list of [this.blocks, this.products, this.free, this.changedRows]) list.length = 0
    this.changeEpoch += 1
    for (const map of [this.rowOf, this.stamps, this.unusable, this.attributes]) map.clear()
    this.sum.fill(0)
    this.factors = []
    this.codes = undefined
  }

  isMeanOutdated(now: number): boolean {
    const due = now - this.changedAt >= Duration.toMillis(meanMovesAfter)
    return this.changes > 0 && (due || this.changes >= meanMovesAt * this.rowOf.size)
  }

  /** Computes μ, all factors and, if need be, all codes; yields now and then, for a caller to let other fibers run. */
  *recomputeMean(): Generator<void> {
    const { changes } = this
    const { size } = this.rowOf
    const changed = new Set<number>()
    this.changedMeanwhile = changed
    const mean = size === 0 ? new Float32Array(this.dimensions) : Vector.divide(this.sum, size)
    const meanSquared = Vector.dot(mean, mean)
    const factors: Array<number> = []
    for (let row = 0; row < this.products.length; row++) {
      factors.push(this.products[row] === undefined ? 0 : this.factorOf(row, mean, meanSquared))
      if (row % this.rowsPerBlock === this.rowsPerBlock - 1) yield
    }
    const codes = this.codesFor(mean, meanSquared)
    if (codes !== undefined && codes !== this.codes)
      for (let row = 0; row < factors.length; row++) {
        codes.set(row, this.vectorAt(row))
        if (row % rowsEncoded === rowsEncoded - 1) yield
      }
    for (const row of changed) {
      factors[row] = this.factorOf(row, mean, meanSquared)
      codes?.set(row, this.vectorAt(row))
    }
    // Set together, so that no search sees a mean without its factors.
    this.mean = mean
    this.meanSquared = meanSquared
    this.factors = factors
    this.codes = codes
    this.changes -= changes
    this.changedMeanwhile = undefined
  }

  /** The codes as they are, or empty ones for all rows. */
  private codesFor(mean: Float32Array, meanSquared: number): BinaryCodes | undefined {
    if (!isSupported || this.rowOf.size * this.dimensions <= this.limits.mostCompared) return undefined
    const { centre } = this.codes ?? {}
    const moved =
      centre === undefined
        ? Number.POSITIVE_INFINITY
        : Vector.dot(centre, centre) - 2 * Vector.dot(centre, mean) + meanSquared
    // Rows are unit vectors, so that the mean of their squared distances from μ is 1 − μ².
    return moved <= codesMoveAt * (1 - meanSquared) ? this.codes : new BinaryCodes(this.dimensions, mean)
  }

  private vectorAt(row: number): Float32Array {
    const start = (row % this.rowsPerBlock) * this.dimensions
    return this.blocks[Math.floor(row / this.rowsPerBlock)]!.subarray(start, start + this.dimensions)
  }

  private factorOf(row: number, mean: Float32Array, meanSquared: number): number {
    const v = this.vectorAt(row)
    const length = Math.sqrt(Math.max(0, Vector.dot(v, v) - 2 * Vector.dot(v, mean) + meanSquared))
    return length < Taste.noDirection ? 0 : 1 / length
  }

  private isSame(row: number, unit: Float32Array): boolean {
    return this.vectorAt(row).every((value, i) => value === unit[i])
  }

  private countAttributes(product: Product | undefined, by: 1 | -1): void {
    for (const name in product?.attributes) {
      const count = (this.attributes.get(name) ?? 0) + by
      if (count === 0) this.attributes.delete(name)
      else this.attributes.set(name, count)
    }
  }

  private noteChange(row: number): void {
    if (this.changedRows.length >= mostChangedRows) {
      this.changedRows.length = 0
      this.changeEpoch += 1
    }
    this.changedRows.push(row)
  }

  private countChange(now: number): void {
    if (this.changes === 0) this.changedAt = now
    this.changes += 1
  }
}
