/**
 * All failure scenarios, in one file so that they can run at the same time. Scenarios that break servers run alone. They
 * come first, because the processor has other tests to run while they wait.
 */
import "./Rabbit.ts"
import "./Mongo.ts"
import "./Mysql.ts"
import "./MongoAnswers.ts"
import "./MongoReplicaSet.ts"
import "./RetryQueues.ts"
import "./Partitions.ts"
import "./Embedder.ts"
import "./Outages.ts"
import "./Workers.ts"
import "./Api.ts"
import "./Deliveries.ts"
import "./Erasures.ts"
import "./Feed.ts"
import "./Poison.ts"
import "./Room.ts"
import "./Shutdown.ts"
