/**
 * Ids of the applied interactions, on the user's record: 16-byte prefixes of message ids, concatenated, oldest first. They
 * change in the same compare-and-swap write as the vector. The oldest ids are written to the overflow before they leave
 * the record, so every applied id is found in one of the two.
 */
import type { MessageId } from "./Interaction.ts"

/** Bytes stored of a message id: 128 bits. */
export const prefixBytes = 16
export const keptIds = 256
/** With more ids than this, the oldest move to the overflow together. */
const archiveAt = keptIds + 64

export type AppliedIds = Uint8Array
export const none: AppliedIds = new Uint8Array(0)

export const count = (ids: AppliedIds): number => ids.byteLength / prefixBytes

/** The first 32 hex digits: the form of an id in the overflow and in sets. */
export const prefix = (id: MessageId): string => id.slice(0, 2 * prefixBytes)

/** Message ids, or their prefixes, in the form stored on the record. */
export const pack = (ids: ReadonlyArray<MessageId>): AppliedIds => {
  const packed = Buffer.alloc(ids.length * prefixBytes)
  for (const [index, id] of ids.entries()) packed.write(prefix(id), index * prefixBytes, "hex")
  return packed
}

export const toSet = (ids: AppliedIds): ReadonlySet<string> => {
  const hex = Buffer.from(ids.buffer, ids.byteOffset, ids.byteLength).toString("hex")
  const set = new Set<string>()
  for (let i = 0; i < hex.length; i += 2 * prefixBytes) set.add(hex.slice(i, i + 2 * prefixBytes))
  return set
}

/** Whether the id is among `ids`; for a few look-ups much cheaper than {@link toSet}. */
export const has = (ids: AppliedIds, id: MessageId): boolean => {
  const bytes = Buffer.from(ids.buffer, ids.byteOffset, ids.byteLength)
  const wanted = Buffer.from(prefix(id), "hex")
  let at = bytes.indexOf(wanted)
  // A match across two ids is not an id.
  while (at >= 0 && at % prefixBytes !== 0) at = bytes.indexOf(wanted, at + 1)
  return at >= 0
}

/** All of both; those of `ids` first. */
export const union = (ids: AppliedIds, added: ReadonlyArray<MessageId>): AppliedIds => {
  const known = toSet(ids)
  return pack([...known, ...added.map(prefix).filter((id) => !known.has(id))])
}

/** The ids of the next record, and the prefixes to write to the overflow before that record is saved. */
export const append = (ids: AppliedIds, added: ReadonlyArray<MessageId>) => {
  const surplus = Math.max(0, count(ids) + added.length - keptIds)
  // The added ids must stay: they are not applied until the record is saved.
  const leaving = count(ids) + added.length > archiveAt ? Math.min(surplus, count(ids)) : 0
  const staying = ids.subarray(leaving * prefixBytes)
  const kept: AppliedIds = new Uint8Array(staying.byteLength + added.length * prefixBytes)
  kept.set(staying)
  kept.set(pack(added), staying.byteLength)
  return { kept, archive: [...toSet(ids.subarray(0, leaving * prefixBytes))] }
}

/**
 * What the ledger keeps ids of: `applied` interactions that no longer fit on the record (the applied overflow), and
 * interactions that workers `skipped`, because their product had no embedding.
 */
export type LedgerKind = "applied" | "skipped"

/** Before the id in a key of the ledger. Release 0.1.0 wrote the id alone. */
export const ledgerPrefix = (kind: LedgerKind, generation: number): string =>
  kind === "skipped" ? `s${generation}|` : generation === 0 ? "" : `${generation}|`
export const idInLedger = (key: string): string => key.slice(-2 * prefixBytes)
