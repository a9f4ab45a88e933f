/**
 * Pure vector maths. Stored vectors are `Float32Array`, sums are `Float64Array`. Each function takes one kind of array,
 * because two kinds at one call site make the compiled code several times slower.
 */

const storedNorm = (v: Float32Array): number => {
  let sum = 0
  for (let i = 0; i < v.length; i++) sum += v[i]! * v[i]!
  return Math.sqrt(sum)
}
const sumNorm = (v: Float64Array): number => {
  let sum = 0
  for (let i = 0; i < v.length; i++) sum += v[i]! * v[i]!
  return Math.sqrt(sum)
}
/** Euclidean length ‖v‖. */
export const norm = (v: Float32Array | Float64Array): number =>
  v instanceof Float32Array ? storedNorm(v) : sumNorm(v)

/** Dot product; the cosine when both are unit length. */
export const dot = (a: Float32Array, b: Float32Array): number => {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!
  return sum
}

/** Euclidean distance ‖a − b‖. */
export const distance = (a: Float32Array, b: Float32Array): number => {
  let sum = 0
  for (let i = 0; i < a.length; i++) {
    const difference = a[i]! - b[i]!
    sum += difference * difference
  }
  return Math.sqrt(sum)
}

/** A computed cosine within -1 and 1: rounded numbers may give a little more. */
export const clampCosine = (computed: number): number => Math.max(-1, Math.min(1, computed))

/** Cosine of the angle between two vectors, 0 when one of them is zero. */
export const cosine = (a: Float32Array, b: Float32Array): number => {
  const lengths = norm(a) * norm(b)
  return lengths === 0 ? 0 : clampCosine(dot(a, b) / lengths)
}

/** `into[i] += factor · v[i]`, in place. */
export const addScaled = (into: Float64Array, factor: number, v: Float32Array): void => {
  for (let i = 0; i < into.length; i++) into[i] = into[i]! + factor * v[i]!
}

let sum = new Float64Array(0)
/** `factor · v`, to add to. All sums share one array, valid until the next call: a new one costs 9 % of an update. */
export const beginSum = (v: Float32Array, factor: number): Float64Array => {
  if (sum.length !== v.length) sum = new Float64Array(v.length)
  for (let i = 0; i < v.length; i++) sum[i] = v[i]! * factor
  return sum
}

export const negate = (v: Float32Array): Float32Array => v.map((x) => -x)

/** `v / length` as a stored vector; `length` must be positive. */
export const divide = (v: Float64Array, length: number): Float32Array => {
  const out = new Float32Array(v.length)
  for (let i = 0; i < v.length; i++) out[i] = v[i]! / length
  return out
}

/** Why a vector can't be used, or `undefined` when it can; its numbers are checked as float32. */
export const problem = (v: ArrayLike<number>, dimensions: number): string | undefined => {
  if (v.length !== dimensions) return `has ${v.length} dimensions instead of ${dimensions}`
  let sum = 0
  for (let i = 0; i < v.length; i++) {
    const value = Math.fround(v[i]!)
    if (!Number.isFinite(value)) return `has the value ${v[i]} at index ${i}, which is not a finite float32`
    sum += value * value
  }
  return sum === 0 ? "is a zero vector" : undefined
}

/** A unit-length copy of a vector without a {@link problem}. */
export const normalise = (v: Float32Array): Float32Array => {
  const length = norm(v)
  const out = new Float32Array(v.length)
  for (let i = 0; i < v.length; i++) out[i] = v[i]! / length
  return out
}

/** The bytes of a vector, little-endian float32; shares its memory. */
export const toBytes = (v: Float32Array): Uint8Array => new Uint8Array(v.buffer, v.byteOffset, v.byteLength)

/** The vector in little-endian float32 bytes; a copy, so the bytes may be unaligned or reused. */
export const fromBytes = (bytes: Uint8Array): Float32Array => new Float32Array(new Uint8Array(bytes).buffer)
