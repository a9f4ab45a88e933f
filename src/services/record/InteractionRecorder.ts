/**
 * Step: submissions → InteractionLog → OutboxRelay. Concurrent submissions share commits: one lane appends
 * whatever is waiting as soon as the commit before has returned, so an idle system waits for no timer and a
 * busy one makes large groups.
 */
import { Clock, Context, Effect, Exit, Fiber, Layer } from "effect"
import * as MessageTraces from "../MessageTraces.ts"
import type { Interaction } from "../model/Interaction.ts"
import {
  type Appended,
  InteractionLog,
  InteractionLogError,
  type NewInteraction,
} from "../ports/InteractionLog.ts"
import * as Telemetry from "../Telemetry.ts"
import { OutboxRelay } from "./OutboxRelay.ts"

/** What a client sent, decoded. */
export interface Submission {
  readonly interaction: Interaction
  readonly idempotencyKey: string | null
  readonly occurredAtGiven: boolean
}

export class InteractionRecorder extends Context.Tag("user-embeddings/InteractionRecorder")<
  InteractionRecorder,
  {
    /**
     * Records submissions and answers in their order once they are committed. Publishing follows by itself and
     * is not waited for.
     */
    readonly record: (
      submissions: ReadonlyArray<Submission>,
    ) => Effect.Effect<ReadonlyArray<Appended>, InteractionLogError>
    /** The same without a fiber for each caller: `done` is called with the answer, once. */
    readonly submit: (
      submissions: ReadonlyArray<Submission>,
      origin: Pick<NewInteraction, "trace" | "recordedAt">,
      done: Done,
    ) => void
  }
>() {}

type Done = (answer: Exit.Exit<ReadonlyArray<Appended>, InteractionLogError>) => void

interface Job {
  readonly entries: ReadonlyArray<NewInteraction>
  readonly done: Done
}

/**
 * Rows of one append; more wins nothing (measured: 100 → 500 rows is 6 %). Fewer are taken as a power of two, for logs
 * keep statements of few sizes prepared; the others come next.
 */
const rowsPerAppend = 256
/** Rows that may wait for the lane; beyond that the log is too slow and clients are told so. */
const rowsWaiting = 20_000

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const relay = yield* OutboxRelay
  const work = yield* Effect.makeLatch(false)
  let waiting: Array<Job> = []
  let rows = 0
  let closing = false

  const takeJobs = (): ReadonlyArray<Job> => {
    const most = 2 ** Math.floor(Math.log2(Math.min(rows, rowsPerAppend)))
    let taken = 0
    let count = 0
    while (count < waiting.length && (count === 0 || taken + waiting[count]!.entries.length <= most))
      taken += waiting[count++]!.entries.length
    const jobs = waiting.slice(0, count)
    waiting = waiting.slice(count)
    rows -= taken
    return jobs
  }

  const flush = Effect.gen(function* () {
    const jobs = takeJobs()
    const entries = jobs.flatMap((job) => job.entries)
    const exit = yield* log
      .append(entries)
      .pipe(
        MessageTraces.withBatchSpan("record interactions", entries.map(MessageTraces.traced)),
        Effect.exit,
      )
    if (Exit.isFailure(exit)) {
      for (const { done } of jobs) done(exit)
      return
    }
    let next = 0
    for (const job of jobs) {
      const start = next
      next += job.entries.length
      job.done(Exit.succeed(exit.value.slice(start, next)))
    }
    relay.offer(entries.filter((_, index) => exit.value[index]?._tag === "Recorded"))
  })

  const lane = Effect.gen(function* () {
    while (!closing || waiting.length > 0) {
      if (waiting.length === 0) {
        work.unsafeClose()
        yield* work.await
      } else yield* flush
    }
  })

  // On shutdown what has been accepted is still committed before the lane ends.
  yield* Effect.acquireRelease(Effect.forkDaemon(lane), (fiber) =>
    Effect.sync(() => {
      closing = true
      work.unsafeOpen()
    }).pipe(Effect.zipRight(Fiber.await(fiber))),
  )

  const submit: InteractionRecorder["Type"]["submit"] = (submissions, origin, done) => {
    if (rows + submissions.length > rowsWaiting || closing) {
      const cause = closing ? "shutting down" : `${rows} interactions are waiting to be committed`
      return done(Exit.fail(new InteractionLogError({ reason: "unavailable", operation: "append", cause })))
    }
    const { recordedAt, trace } = origin
    const entries = submissions.map(
      ({ idempotencyKey, interaction, occurredAtGiven }): NewInteraction => ({
        interaction,
        idempotencyKey,
        occurredAtGiven,
        trace,
        recordedAt,
      }),
    )
    waiting.push({ entries, done })
    rows += submissions.length
    work.unsafeOpen()
  }

  const record = (submissions: ReadonlyArray<Submission>) =>
    Effect.gen(function* () {
      const trace = yield* Telemetry.currentTrace
      const recordedAt = yield* Clock.currentTimeMillis
      return yield* Effect.async<ReadonlyArray<Appended>, InteractionLogError>((resume) =>
        submit(submissions, { trace, recordedAt }, resume),
      )
    })

  return { record, submit }
})

export const layer = Layer.scoped(InteractionRecorder, make)
