import { expect, test } from "bun:test"
import fc from "fast-check"
import { userVectorJson } from "../../../src/services/api/VectorJson.ts"

/** The vector after it was written and read. */
const reread = (vector: Float32Array) => {
  const user = { user_id: "Zoë", version: 7 }
  const json = userVectorJson({ ...user, space: "s", embedding: vector })
  const { embedding, ...rest } = JSON.parse(new TextDecoder().decode(json))
  expect(rest).toEqual(user)
  return Float32Array.from(embedding)
}

test("JSON keeps every float32", () => {
  const numbers = fc.oneof(
    fc.float({ noNaN: true, noDefaultInfinity: true }),
    fc.float({ min: -1, max: 1, noNaN: true }),
  )
  fc.assert(
    fc.property(fc.array(numbers), (values) => {
      const vector = Float32Array.from(values, (value) => value + 0)
      expect(reread(vector)).toEqual(vector)
    }),
  )
})

test("JSON keeps the neighbours of each power of ten", () => {
  for (let exponent = -45; exponent <= 38; exponent++) {
    const bits = new Uint32Array(Float32Array.of(10 ** exponent).buffer)[0]!
    const vector = new Float32Array(Uint32Array.of(Math.max(0, bits - 1), bits, bits + 1).buffer)
    expect(reread(vector)).toEqual(vector)
  }
})
