throw new Error(
  'user-embeddings runs on Bun (https://bun.sh). Elsewhere, use a running API: import { createClient } from "user-embeddings/client"',
)
