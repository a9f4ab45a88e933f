/** The contract suite of the feed, on both stacks. */
import { suite } from "../contracts/EmbeddingFeedContract.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const vectors = { EMBEDDING_FEED: "vectors" }
suite("SQLite: feed of changes", embedded(vectors))
withServers(["rabbitmq", "mysql", "mongodb"], "feed of changes on real servers", () =>
  suite("RabbitMQ: feed of changes", external(vectors)),
)
