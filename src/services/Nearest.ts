/** Keeps the best of many candidates without sorting them all. */

/** Puts a candidate among the best so far, greatest similarity first, at most `limit` of them. */
export const keepBest = <A extends { readonly similarity: number }>(
  best: Array<A>,
  limit: number,
  candidate: A,
): void => {
  const worst = best[limit - 1]
  if (worst !== undefined && worst.similarity >= candidate.similarity) return
  const at = best.findLastIndex(({ similarity }) => similarity >= candidate.similarity) + 1
  best.splice(at, 0, candidate)
  if (best.length > limit) best.pop()
}
