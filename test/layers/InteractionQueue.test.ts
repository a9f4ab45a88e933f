/** Both queues keep the promises of their ports. */
import * as DeadLettersContract from "../contracts/DeadLettersContract.ts"
import * as InteractionQueueContract from "../contracts/InteractionQueueContract.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const fast = { WORKER_RETRY_DELAY: "200" }
InteractionQueueContract.suite("SQLite: queue", embedded(fast))
DeadLettersContract.suite("SQLite: dead letters", embedded(fast))
withServers(["rabbitmq", "mysql", "mongodb"], "RabbitMQ", () => {
  InteractionQueueContract.suite("queue", external(fast))
  DeadLettersContract.suite("dead letters", external(fast))
})
