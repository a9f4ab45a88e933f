/** Both queues keep the promises of the port. */
import { suite } from "../contracts/InteractionQueueContract.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const fast = { WORKER_RETRY_DELAY: "200" }
suite("SQLite: queue and dead letters", embedded(fast))
withServers(["rabbitmq", "mysql", "mongodb"], "RabbitMQ", () =>
  suite("queue and dead letters", external(fast)),
)
