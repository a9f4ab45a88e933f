/** Examples at the end of each command's `--help`. */

/** By the full name of the command, in the order of `--help`. */
export const examples: Readonly<Record<string, ReadonlyArray<string>>> = {
  up: ["up", "API_PORT=8080 DATA_DIR=/var/lib/user-embeddings user-embeddings up"],
  api: ["api", "API_HOST=0.0.0.0 API_TOKENS=first,second user-embeddings api"],
  worker: ["worker", "EMBEDDING_BATCH_ENABLED=true WORKER_PORT=9465 user-embeddings worker"],
  relay: ["relay"],
  setup: ["setup", "setup --check"],
  doctor: ["doctor", "doctor --json"],
  config: ["config", "config --json"],
  "products import": [
    "products import samples/catalogue.jsonl",
    "products import catalogue.jsonl --strict --json",
    "products import catalogue.csv --replace --dry-run",
  ],
  "products export": ["products export --out catalogue.csv", "products export > catalogue.jsonl"],
  "products remove": ["products remove 101 102"],
  "import interactions": [
    "import interactions history.jsonl",
    "import interactions history.csv --map user_id=customer,product_id=item,occurred_at=when --set event_type=product_purchase",
    "import interactions events.tsv --types buy=product_purchase --ignore '*'",
  ],
  "export embeddings": [
    "export embeddings --out users.parquet",
    "export embeddings --format npy --out users.npy",
    "export embeddings --since 1d > changed.jsonl",
  ],
  "export interactions": [
    "export interactions --out log.csv",
    "export interactions --user 123 --type product_purchase",
    "export interactions --recorded-since 1d --out yesterday.jsonl",
  ],
  evaluate: [
    "evaluate history.jsonl --products catalogue.jsonl",
    "evaluate history.csv --map user_id=customer,product_id=item --target product_purchase",
  ],
  "user show": ["user show 123", "user show 123 --json"],
  "user export": ["user export 123", "user export 123 -o person.json"],
  "user erase": ["user erase 123", "user erase 123 --yes --json"],
  stats: ["stats", "stats --watch", "stats --json"],
  "failed list": ["failed list", "failed list --error space_mismatch --since 7d --user 123"],
  "failed groups": ["failed groups", "failed groups --since 1d --json"],
  "failed show": ["failed show 0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4"],
  "failed retry": [
    "failed retry --all --error space_mismatch --dry-run",
    "failed retry --all --error space_mismatch",
  ],
  "failed remove": [
    "failed remove --all --error not_json --dry-run",
    "failed remove --all --error not_json --yes",
  ],
  replay: [
    "replay --user 123 --since 2026-02-01 --until 2026-03-01",
    "replay --type product_view --since 7d --dry-run",
    "replay --recorded-since 2026-02-01",
  ],
  rebuild: ["rebuild --user 123", "rebuild --all", "rebuild --all --after 123"],
  audit: ["audit", "audit --user 123 --details"],
  prune: ["prune --before 2025-11-01 --dry-run", "prune --before 2025-11-01 --yes --json"],
  backup: ["backup --to backups/monday", "backup --to /mnt/backup --json"],
  sink: [
    "sink --to postgres://user@db.example:5432/shop",
    "sink --to postgres://user@db.example:5432/shop --check",
    "sink --to postgres://user@db.example:5432/shop --table analytics.tastes --read taste",
  ],
  trace: [
    "trace 0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4",
    "trace 4bf92f3577b34da6a3ce929d0e0e4736 --json",
  ],
  help: ["help", "help failed retry"],
  version: ["version"],
  generate: ["generate --users 10 --events 5 --rate 50", "generate --check --json"],
}
