/** The contract suites of the stores, on the embedded stack. */
import { suite as phrases } from "../../contracts/PhraseEmbeddingsContract.ts"
import { suite as products } from "../../contracts/ProductEmbeddingsContract.ts"
import { suite as users } from "../../contracts/UserEmbeddingsContract.ts"
import { embedded } from "../../support/stacks.ts"

const stack = embedded()
users("SQLite: user embeddings", stack)
products("SQLite: product embeddings", stack)
phrases("SQLite: phrase embeddings", stack)
