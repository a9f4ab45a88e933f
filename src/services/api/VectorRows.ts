/** Many vectors in one body: a line of JSON, then a row of little-endian float32 for each user that the line names. */
import { Schema } from "effect"
import * as Vector from "../model/Vector.ts"
import type { UserVector } from "../recommend/EmbeddingReads.ts"
import { Float32Line } from "./EmbeddingApi.ts"

/** The line is padded with spaces, so that the rows begin at a multiple of four bytes, as a Float32Array needs. */
export const encodeVectors = (
  facts: Pick<typeof Float32Line.Type, "read" | "space" | "dimension_count">,
  found: ReadonlyArray<UserVector>,
): Uint8Array => {
  const line: typeof Float32Line.Type = {
    ...facts,
    user_ids: found.map(({ user_id }) => user_id),
    versions: found.map(({ version }) => version),
  }
  const text = JSON.stringify(line)
  const length = Buffer.byteLength(text) + 1
  const padded = `${text}${" ".repeat((4 - (length % 4)) % 4)}\n`
  return Buffer.concat([Buffer.from(padded), ...found.map(({ embedding }) => Vector.toBytes(embedding))])
}

const decodeLine = Schema.decodeUnknownSync(Schema.parseJson(Float32Line))

/** The vectors of the users in the order in which they were asked for; `null` for those that the line does not name. */
export const decodeVectors = (
  body: Uint8Array,
  asked: ReadonlyArray<string>,
): ReadonlyArray<UserVector | null> => {
  const end = body.indexOf(0x0a) + 1
  const { dimension_count, space, user_ids, versions } = decodeLine(
    Buffer.from(body.subarray(0, end)).toString(),
  )
  const rowBytes = 4 * dimension_count
  let row = 0
  return asked.map((user_id) => {
    if (user_ids[row] !== user_id) return null
    const begin = end + row * rowBytes
    const embedding = Vector.fromBytes(body.subarray(begin, begin + rowBytes))
    return { user_id, space, version: versions[row++]!, embedding }
  })
}
