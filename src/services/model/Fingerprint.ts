/** Count and XOR of 128-bit ids: the same for the same set, in any order. */
import * as AppliedIds from "./AppliedIds.ts"

export class Fingerprint {
  count = 0
  private a = 0
  private b = 0
  private c = 0
  private d = 0

  constructor(ids = AppliedIds.none) {
    this.add(ids)
  }

  add(ids: AppliedIds.AppliedIds, from = 0, to = AppliedIds.count(ids)): void {
    const words = new DataView(ids.buffer, ids.byteOffset, ids.byteLength)
    for (
      let at = from * AppliedIds.prefixBytes;
      at < to * AppliedIds.prefixBytes;
      at += AppliedIds.prefixBytes
    ) {
      this.a ^= words.getInt32(at)
      this.b ^= words.getInt32(at + 4)
      this.c ^= words.getInt32(at + 8)
      this.d ^= words.getInt32(at + 12)
    }
    this.count += to - from
  }

  /** Adds the ids of another set, given by their number and their {@link toHex}. */
  addSet(count: number, hex: string): void {
    this.add(AppliedIds.pack([hex]))
    this.count += count - 1
  }

  addAll({ a, b, c, count, d }: Fingerprint): void {
    this.a ^= a
    this.b ^= b
    this.c ^= c
    this.d ^= d
    this.count += count
  }

  equals({ a, b, c, count, d }: Fingerprint): boolean {
    return this.count === count && this.a === a && this.b === b && this.c === c && this.d === d
  }

  toHex(): string {
    return [this.a, this.b, this.c, this.d].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("")
  }
}
