/**
 * The ids applied live on the user's document as 16-byte prefixes of message ids, packed, oldest first. They
 * change in the same compare-and-swap write as the vector. Before the oldest leave the document they are
 * written to the ledger, so what is looked up there has certainly been applied.
 */
import type { MessageId } from "./Interaction.ts"

/** Bytes of a message id that are kept: 128 bits. */
export const prefixBytes = 16
/** How many ids stay on the document. */
export const keptIds = 256
/** How far the document may grow before the oldest ids move to the ledger together. */
const archiveAt = keptIds + 64

export type AppliedIds = Uint8Array
export const none: AppliedIds = new Uint8Array(0)

export const count = (ids: AppliedIds): number => ids.byteLength / prefixBytes

/** The first 32 hex digits: how an id is named in the ledger and in sets. */
export const prefix = (id: MessageId): string => id.slice(0, 2 * prefixBytes)

/** Message ids, or their prefixes, as they stand on the document. */
export const pack = (ids: ReadonlyArray<MessageId>): AppliedIds => {
  const packed = Buffer.alloc(ids.length * prefixBytes)
  for (const [index, id] of ids.entries()) packed.write(prefix(id), index * prefixBytes, "hex")
  return packed
}

/** The prefixes on the document, for look-ups. */
export const toSet = (ids: AppliedIds): ReadonlySet<string> => {
  const hex = Buffer.from(ids.buffer, ids.byteOffset, ids.byteLength).toString("hex")
  const set = new Set<string>()
  for (let i = 0; i < hex.length; i += 2 * prefixBytes) set.add(hex.slice(i, i + 2 * prefixBytes))
  return set
}

/** Whether the id is on the document; much cheaper than {@link toSet} for the few ids of a batch. */
export const has = (ids: AppliedIds, id: MessageId): boolean => {
  const bytes = Buffer.from(ids.buffer, ids.byteOffset, ids.byteLength)
  const wanted = Buffer.from(prefix(id), "hex")
  let at = bytes.indexOf(wanted)
  // What lies across two ids is none.
  while (at >= 0 && at % prefixBytes !== 0) at = bytes.indexOf(wanted, at + 1)
  return at >= 0
}

/** The ids of the next document, and the prefixes to put into the ledger before it is written. */
export const append = (
  ids: AppliedIds,
  added: ReadonlyArray<MessageId>,
): { readonly kept: AppliedIds; readonly archive: ReadonlyArray<string> } => {
  const surplus = Math.max(0, count(ids) + added.length - keptIds)
  // Only ids that are already durable may leave: those added now are not applied until the write succeeds.
  const leaving = count(ids) + added.length > archiveAt ? Math.min(surplus, count(ids)) : 0
  const staying = ids.subarray(leaving * prefixBytes)
  const kept = new Uint8Array(staying.byteLength + added.length * prefixBytes)
  kept.set(staying)
  kept.set(pack(added), staying.byteLength)
  return { kept, archive: [...toSet(ids.subarray(0, leaving * prefixBytes))] }
}
