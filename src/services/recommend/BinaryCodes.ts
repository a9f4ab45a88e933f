/**
 * Codes of one bit per dimension, by which many dot products are estimated quickly (RaBitQ, Gao and Long 2024):
 *
 *     w    = R (v − centre)                     R: a fixed random rotation
 *     code = the signs of w
 *     q · (v − centre) ≈ (R q · code) · scale   scale = ‖w‖² / Σ |w_i|
 *
 * R q · code has an error that is normally distributed with σ = 0.6 ‖q‖, whatever the vectors are, because R is random.
 */
import * as Vector from "../model/Vector.ts"
import { kernel } from "./BinaryCodesKernel.ts"

/** Rows whose codes lie together. */
const groupRows = 16
/** Bytes of a code whose table entries have a sum of one byte. */
const bytesAtOnce = 4
/** Rows estimated at once: about 0.5 ms. */
export const sliceRows = 16_384
/** σ = √(1 − 2/π) = 0.6. One estimate in 160 is too low by more than 2.5 σ. */
const error = 2.5 * Math.sqrt(1 - 2 / Math.PI)
const pageBytes = 65_536

const binary = Buffer.from(kernel, "base64")
/** False on processors without the vector instructions that the kernel needs. */
export const isSupported = WebAssembly.validate(binary)

interface Kernel {
  readonly memory: WebAssembly.Memory
  readonly sum: (codes: number, codesEnd: number, tables: number, tablesEnd: number, out: number) => void
}

/** Replaces `v` by its product with the orthogonal Hadamard matrix; the length must be a power of 2. */
const hadamard = (v: Float32Array): void => {
  for (let half = 1; half < v.length; half *= 2)
    for (let start = 0; start < v.length; start += 2 * half)
      for (let i = start; i < start + half; i++) {
        const a = v[i]!
        const b = v[i + half]!
        v[i] = a + b
        v[i + half] = a - b
      }
  const factor = 1 / Math.sqrt(v.length)
  for (let i = 0; i < v.length; i++) v[i] = v[i]! * factor
}

/** The same in every process (xorshift). */
const randomSigns = (count: number): Float32Array => {
  let state = 0x9e3779b9
  return Float32Array.from({ length: count }, () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state < 0 ? -1 : 1
  })
}

/** A direction as the search needs it. */
export interface Query {
  /** Of an estimate: `(sum · step + offset) · scale`. */
  readonly step: number
  /** With it an estimate is an upper bound. */
  readonly offset: number
  /** direction · centre */
  readonly onCentre: number
}

export class BinaryCodes {
  /** By row. */
  readonly scales: Array<number> = []
  private readonly kernel: Kernel
  /** Of a code; 8 dimensions a byte. */
  private readonly bytes: number
  private readonly signs: Float32Array
  private readonly rotated: Float32Array
  /** Where the memory of the kernel has sums and codes; the tables come first. */
  private readonly sumsAt: number
  private readonly codesAt: number

  constructor(
    private readonly dimensions: number,
    readonly centre: Float32Array,
  ) {
    this.bytes = bytesAtOnce * Math.ceil(dimensions / 8 / bytesAtOnce)
    this.signs = randomSigns(2 * dimensions)
    this.rotated = new Float32Array(8 * this.bytes)
    // TypeScript does not know what a module exports; the test of the kernel compares it with its source.
    this.kernel = new WebAssembly.Instance(new WebAssembly.Module(binary)).exports as unknown as Kernel
    this.sumsAt = 2 * groupRows * this.bytes
    this.codesAt = this.sumsAt + 2 * sliceRows
  }

  set(row: number, v: Float32Array): void {
    const { centre, rotated } = this
    for (let i = 0; i < v.length; i++) rotated[i] = v[i]! - centre[i]!
    this.rotate()
    const end = this.codesAt + (Math.floor(row / groupRows) + 1) * groupRows * this.bytes
    const { memory } = this.kernel
    const missing = end - memory.buffer.byteLength
    if (missing > 0)
      memory.grow(Math.ceil(missing / pageBytes) + Math.ceil(memory.buffer.byteLength / pageBytes / 8))
    const codes = new Uint8Array(memory.buffer)
    let at = end - groupRows * this.bytes + (row % groupRows)
    let squares = 0
    let sum = 0
    for (let i = 0; i < rotated.length; i += 8, at += groupRows) {
      let code = 0
      for (let bit = 0; bit < 8; bit++) {
        const x = rotated[i + bit]!
        squares += x * x
        sum += Math.abs(x)
        code |= Number(x > 0) << bit
      }
      codes[at] = code
    }
    this.scales[row] = sum === 0 ? 0 : squares / sum
  }

  /** Prepares for a direction; only the last one can be asked about. */
  prepare(direction: Float32Array): Query {
    const { centre, rotated } = this
    rotated.set(direction)
    this.rotate()
    let total = 0
    let greatest = 0
    let squares = 0
    for (let i = 0; i < rotated.length; i += 8 * bytesAtOnce) {
      let sum = 0
      for (let k = i; k < i + 8 * bytesAtOnce; k++) {
        sum += Math.abs(rotated[k]!)
        squares += rotated[k]! * rotated[k]!
      }
      greatest = Math.max(greatest, sum)
      total += sum
    }
    // Each of two entries a byte may be greater by one half, because it is rounded.
    const step = Math.max((2 * greatest) / (255 - bytesAtOnce), (2 * total) / (65_535 - this.bytes)) || 1
    const tables = new Uint8Array(this.kernel.memory.buffer, 0, this.sumsAt)
    const entries = new Float64Array(16)
    for (let at = 0; at < rotated.length; at += 4) {
      // With Σ |x_i| no entry is negative.
      entries[0] = 0
      for (let i = at; i < at + 4; i++) entries[0] += Math.abs(rotated[i]!) - rotated[i]!
      for (let code = 1; code < 16; code++)
        entries[code] = entries[code & (code - 1)]! + 2 * rotated[at + 31 - Math.clz32(code & -code)]!
      for (let code = 0; code < 16; code++) tables[4 * at + code] = Math.round(entries[code]! / step)
    }
    const onCentre = Vector.dot(direction, centre)
    return { step, offset: error * Math.sqrt(squares) - total, onCentre }
  }

  /** The sums of a slice of rows, which begins at a multiple of `sliceRows`. Valid until the next call. */
  sums(from: number): Uint16Array {
    const { bytes, codesAt, kernel, scales, sumsAt } = this
    const groups = Math.ceil(Math.min(sliceRows, scales.length - from) / groupRows)
    const start = codesAt + from * bytes
    kernel.sum(start, start + groups * groupRows * bytes, 0, sumsAt, sumsAt)
    return new Uint16Array(kernel.memory.buffer, sumsAt, groups * groupRows)
  }

  /** Multiplies `rotated` by R: random signs and a Hadamard matrix on the first numbers, then on the last ones. */
  private rotate(): void {
    const { dimensions, rotated, signs } = this
    const length = 2 ** Math.floor(Math.log2(dimensions))
    for (let i = 0; i < dimensions; i++) rotated[i] = rotated[i]! * signs[i]!
    hadamard(rotated.subarray(0, length))
    for (let i = 0; i < dimensions; i++) rotated[i] = rotated[i]! * signs[dimensions + i]!
    hadamard(rotated.subarray(dimensions - length, dimensions))
  }
}
