/** Vector maths against plain float64 arithmetic, and values that are not accepted as vectors. */
import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import * as Vector from "../../../src/services/model/Vector.ts"

const float32 = (values: ReadonlyArray<number>) => Float32Array.from(values)
const anyFinite = fc.float({ noNaN: true, noDefaultInfinity: true })
const anyVector = fc.array(anyFinite, { minLength: 1, maxLength: 64 }).map((values) => float32(values))
const usable = anyVector.filter((v) => Vector.problem(v, v.length) === undefined)
const pair = fc
  .integer({ min: 1, max: 64 })
  .chain((length) =>
    fc.tuple(...[0, 1].map(() => fc.array(anyFinite, { minLength: length, maxLength: length }))),
  )
  .map(([a, b]) => [float32(a ?? []), float32(b ?? [])] as const)

/** Equal up to float64 rounding, at any magnitude. */
const close = (a: number, b: number, magnitude = Math.max(Math.abs(a), Math.abs(b))) =>
  Math.abs(a - b) <= 1e-12 * magnitude

describe("arithmetic", () => {
  test("norm is the Euclidean length, even of the smallest and the greatest float32", () => {
    fc.assert(fc.property(anyVector, (v) => close(Vector.norm(v), Math.hypot(...v))))
    expect(Vector.norm(float32([2 ** -149]))).toBe(2 ** -149)
    expect(Vector.norm(float32([3.4028234663852886e38, 3.4028234663852886e38]))).toBeCloseTo(4.812e38, -36)
    expect(Vector.norm(new Float64Array([3, 4]))).toBe(5)
    expect(Vector.norm(new Float32Array(0))).toBe(0)
  })

  test("dot is the sum of products, in either order of the arguments", () => {
    fc.assert(
      fc.property(pair, ([a, b]) => {
        const products = Array.from(a, (value, i) => value * (b[i] ?? Number.NaN))
        const magnitude = products.reduce((sum, product) => sum + Math.abs(product), 0)
        return (
          close(
            Vector.dot(a, b),
            products.reduce((sum, product) => sum + product, 0),
            magnitude,
          ) && Vector.dot(a, b) === Vector.dot(b, a)
        )
      }),
    )
  })

  test("cosine is in [-1, 1]: 1 with itself, -1 with the opposite, 0 with a zero vector", () => {
    fc.assert(
      fc.property(pair, ([a, b]) => {
        expect(Math.abs(Vector.cosine(a, b))).toBeLessThanOrEqual(1)
        if (Vector.norm(a) > 0) {
          expect(Vector.cosine(a, a)).toBeCloseTo(1, 12)
          expect(
            Vector.cosine(
              a,
              a.map((x) => -x),
            ),
          ).toBeCloseTo(-1, 12)
        }
      }),
    )
    expect(Vector.cosine(float32([0, 0]), float32([1, 0]))).toBe(0)
    expect(Vector.cosine(float32([0, 0]), float32([0, 0]))).toBe(0)
  })

  test("addScaled works in place, and scaled on a copy", () => {
    const into = new Float64Array([1, 2])
    const v = float32([10, 20])
    Vector.addScaled(into, 0.5, v)
    expect(into).toEqual(new Float64Array([6, 12]))
    expect(v).toEqual(float32([10, 20]))
    expect(Vector.beginSum(v, 2)).toEqual(new Float64Array([20, 40]))
    expect(v).toEqual(float32([10, 20]))
    expect(Vector.divide(into, 12)).toEqual(float32([0.5, 1]))
    expect(into).toEqual(new Float64Array([6, 12]))
  })
})

describe("normalise", () => {
  test("gives every usable vector unit length and keeps its direction", () => {
    fc.assert(
      fc.property(usable, (v) => {
        const unit = Vector.normalise(v)
        expect(Math.abs(Vector.norm(unit) - 1)).toBeLessThan(1e-6)
        expect(Vector.cosine(unit, v)).toBeCloseTo(1, 6)
      }),
    )
  })

  test("keeps unit length at 1,536 and at 16,384 dimensions", () => {
    for (const dimensions of [1536, 16_384]) {
      const v = Float32Array.from({ length: dimensions }, (_, i) => Math.sin(i * i) * 1e-3)
      expect(Math.abs(Vector.norm(Vector.normalise(v)) - 1)).toBeLessThan(1e-6)
    }
  })

  test("copies, and leaves the given vector unchanged", () => {
    const v = float32([3, 4])
    expect(Vector.normalise(v)).toEqual(float32([0.6, 0.8]))
    expect(v).toEqual(float32([3, 4]))
  })
})

describe("problem", () => {
  test("accepts a usable vector in any kind of array", () => {
    for (const v of [float32([0, 1]), new Float64Array([0, 1]), [0, 1]])
      expect(Vector.problem(v, 2)).toBeUndefined()
    expect(Vector.problem([2 ** -149, 0], 2)).toBeUndefined()
    expect(Vector.problem([3.4e38, -3.4e38], 2)).toBeUndefined()
  })

  test("reports wrong dimensions, zero vectors, and the index of a value that is not a float32", () => {
    const table: ReadonlyArray<readonly [ArrayLike<number>, string]> = [
      [[1, 2], "has 2 dimensions instead of 3"],
      [[1, 2, 3, 4], "has 4 dimensions instead of 3"],
      [[], "has 0 dimensions instead of 3"],
      [[0, 0, 0], "is a zero vector"],
      [[0, -0, 0], "is a zero vector"],
      [[0, Number.NaN, 0], "has the value NaN at index 1, which is not a finite float32"],
      [[0, 1, Number.POSITIVE_INFINITY], "has the value Infinity at index 2, which is not a finite float32"],
      [[Number.NEGATIVE_INFINITY, 1, 0], "has the value -Infinity at index 0, which is not a finite float32"],
      // Finite as a double, but not as the stored float32.
      [[0, 1e39, 0], "has the value 1e+39 at index 1, which is not a finite float32"],
      [[0, -1e300, 0], "has the value -1e+300 at index 1, which is not a finite float32"],
      [[1e-60, 1e-60, 0], "is a zero vector"],
    ]
    for (const [v, problem] of table) expect(Vector.problem(v, 3)).toBe(problem)
  })

  test("an accepted vector, stored as float32, can be normalised", () => {
    const anyDouble = fc.oneof(
      fc.double(),
      fc.double({ min: -1e39, max: 1e39 }),
      fc.constantFrom(0, 1e-50, 1e-40),
    )
    fc.assert(
      fc.property(fc.array(anyDouble, { minLength: 1, maxLength: 8 }), (values) => {
        fc.pre(Vector.problem(values, values.length) === undefined)
        expect(Math.abs(Vector.norm(Vector.normalise(Float32Array.from(values))) - 1)).toBeLessThan(1e-6)
      }),
    )
  })
})

describe("bytes", () => {
  test("are little-endian float32 and decode exactly", () => {
    expect(Vector.toBytes(float32([1, -2]))).toEqual(Uint8Array.of(0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0))
    fc.assert(fc.property(anyVector, (v) => expect(Vector.fromBytes(Vector.toBytes(v))).toEqual(v)))
  })

  test("of a part of a buffer are only that part", () => {
    const whole = float32([1, 2, 3, 4])
    expect(Vector.fromBytes(Vector.toBytes(whole.subarray(1, 3)))).toEqual(float32([2, 3]))
  })

  test("may be unaligned, and may be reused afterwards", () => {
    const room = new Uint8Array(9)
    room.set(Vector.toBytes(float32([1, 2])), 1)
    const v = Vector.fromBytes(room.subarray(1))
    room.fill(0xff)
    expect(v).toEqual(float32([1, 2]))
  })

  test("of a Buffer are copied too, although its slice is a view", () => {
    const room = Buffer.concat([Buffer.alloc(4), Vector.toBytes(float32([5, 6]))])
    const v = Vector.fromBytes(room.subarray(4))
    room.fill(0xff)
    expect(v).toEqual(float32([5, 6]))
  })
})
