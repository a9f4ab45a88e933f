/** Both queues pass the contracts of their ports. */
import * as DeadLettersContract from "../contracts/DeadLettersContract.ts"
import * as InteractionQueueContract from "../contracts/InteractionQueueContract.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

const { rabbitmq, sqlite } = InteractionQueueContract
const variables = ({ retryDelay }: InteractionQueueContract.Features) => ({
  WORKER_RETRY_DELAY: String(retryDelay),
})
InteractionQueueContract.suite("SQLite: queue", embedded(variables(sqlite)), sqlite)
DeadLettersContract.suite("SQLite: dead letters", embedded(variables(sqlite)), sqlite)
withServers(["rabbitmq", "mysql", "mongodb"], "RabbitMQ", () => {
  InteractionQueueContract.suite("queue", external(variables(rabbitmq)), rabbitmq)
  DeadLettersContract.suite("dead letters", external(variables(rabbitmq)), rabbitmq)
})
