/**
 * The load generator, a process of its own: raw keep-alive connections with one request at a time on each. The first
 * argument is its order as JSON; the result goes to standard output as JSON.
 */
import { body, bulkItem, event, type Range } from "./events.ts"

export interface Order {
  readonly url: string
  readonly range: Range
  readonly connections: number
  /** Events in one request; 1 = the routes for single events. */
  readonly perRequest: number
  /** Events a second, evenly spaced; `null` = a new request as soon as an answer comes. */
  readonly rate: number | null
  /** Sends items of the bulk route to `POST /`, as the baseline and the echo expect. */
  readonly plain?: boolean
}

export interface Seen {
  readonly seconds: number
  readonly events: number
  /** Requests by status. */
  readonly statuses: Readonly<Record<string, number>>
  /** Latency of a request in ms; at a fixed rate counted from the time at which the request was due. */
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly worst: number
  /** CPU of this process in µs. */
  readonly cpu: number
}

const order: Order = JSON.parse(process.argv[2] ?? "{}")
const { range, perRequest, rate, url } = order
const { hostname, port } = new URL(url)
const requests = Math.ceil(range.count / perRequest)

const post = (path: string, content: string): string =>
  `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${content.length}\r\n\r\n${content}`

const render = (request: number): string => {
  const from = range.from + request * perRequest
  if (perRequest === 1) {
    const one = event(range, from)
    return order.plain
      ? post("/", JSON.stringify(bulkItem(one)))
      : post(`/api/user/${one.user_id}/product/${one.product_id}/${one.action}`, body(one))
  }
  const until = Math.min(from + perRequest, range.from + range.count)
  const items = Array.from({ length: until - from }, (_, i) => bulkItem(event(range, from + i)))
  return post("/api/interactions", JSON.stringify(items))
}

/** A keep-alive connection with at most one request in flight. */
class Connection {
  /** The time at which the request in flight was due. */
  since = 0
  received = ""
  private pending = Buffer.alloc(0)
  private readonly socket: Bun.Socket<Connection | undefined>

  constructor(socket: Bun.Socket<Connection | undefined>) {
    this.socket = socket
  }

  send(text: string, due: number): void {
    this.since = due
    this.received = ""
    this.pending = Buffer.from(text)
    this.flush()
  }

  flush(): void {
    if (this.pending.length > 0)
      this.pending = this.pending.subarray(Math.max(0, this.socket.write(this.pending)))
  }
}

const latencies = new Float64Array(requests)
const statuses: Record<string, number> = {}
let sent = 0
let answered = 0
const idle: Array<Connection> = []
const finished = Promise.withResolvers<void>()

let started = 0
const dueAt = (request: number): number =>
  rate === null ? 0 : started + (request * perRequest * 1000) / rate

let timer: Timer | undefined

/** Uses the connections that have been idle for longest, because the server closes idle connections. */
const pump = () => {
  const now = performance.now()
  while (sent < requests && idle.length > 0) {
    const due = rate === null ? now : dueAt(sent)
    if (due > now) {
      clearTimeout(timer)
      timer = setTimeout(pump, due - now)
      return
    }
    idle.shift()!.send(render(sent++), due)
  }
}

const onData = (connection: Connection, text: string) => {
  connection.received += text
  const head = connection.received.indexOf("\r\n\r\n")
  if (head < 0) return
  const length = Number(/content-length: (\d+)/i.exec(connection.received.slice(0, head))?.[1] ?? 0)
  if (connection.received.length < head + 4 + length) return
  const status = connection.received.slice(9, 12)
  statuses[status] = (statuses[status] ?? 0) + 1
  latencies[answered++] = performance.now() - connection.since
  if (answered === requests) return finished.resolve()
  idle.push(connection)
  pump()
}

const connect = () =>
  Bun.connect<Connection | undefined>({
    hostname,
    port: Number(port),
    data: undefined,
    socket: {
      open: (socket) => {
        socket.data = new Connection(socket)
        idle.push(socket.data)
      },
      drain: (socket) => socket.data?.flush(),
      data: (socket, data) => socket.data && onData(socket.data, data.toString("latin1")),
      close: () => finished.reject(new Error("the server closed a connection")),
      error: (_, error) => finished.reject(error),
    },
  })

await Promise.all(Array.from({ length: order.connections }, connect))
const unused = process.cpuUsage()
started = performance.now()
pump()
await finished.promise
const seconds = (performance.now() - started) / 1000
const { system, user } = process.cpuUsage(unused)
const sorted = latencies.subarray(0, answered).toSorted()
const at = (share: number): number => sorted[Math.min(answered - 1, Math.floor(answered * share))] ?? 0
const seen: Seen = {
  seconds,
  events: range.count,
  statuses,
  p50: at(0.5),
  p95: at(0.95),
  p99: at(0.99),
  worst: at(1),
  cpu: system + user,
}
process.stdout.write(JSON.stringify(seen), () => process.exit(0))
