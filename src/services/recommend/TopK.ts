/** The best of many candidates, without sorting them all. */

/** Inserts a candidate into the sorted list of the best `limit`; among equals the earlier one stays ahead. */
export const insertTopK = <A>(
  best: Array<A>,
  limit: number,
  candidate: A,
  ahead: (a: A, b: A) => boolean,
): void => {
  const worst = best[limit - 1]
  if (worst !== undefined && !ahead(candidate, worst)) return
  let at = 0
  for (let end = best.length; at < end; ) {
    const middle = (at + end) >>> 1
    if (ahead(candidate, best[middle]!)) end = middle
    else at = middle + 1
  }
  best.splice(at, 0, candidate)
  if (best.length > limit) best.pop()
}

/** Greater similarity first. */
export const moreSimilar = (
  a: { readonly similarity: number },
  b: { readonly similarity: number },
): boolean => a.similarity > b.similarity
