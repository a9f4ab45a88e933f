/** A TCP proxy in front of a server. It simulates outages: no connection, or no answer. */
import net, { type AddressInfo, type Socket } from "node:net"
import { Effect } from "effect"
import { MongoClient } from "mongodb"
import { urlsIn } from "./servers.ts"

export interface TcpProxy {
  readonly port: number
  /** The URL of the target with the address of the proxy. */
  readonly url: string
  /** Closes all connections, also new ones. */
  readonly cut: () => void
  /** Keeps connections and accepts new ones, but forwards nothing. */
  readonly freeze: () => void
  /** Forwards again, also on connections that were frozen. */
  readonly restore: () => void
}

/** The URL of one node: the first of RabbitMQ's, the primary of a replica set. */
const oneNode = async (target: string): Promise<URL> => {
  if (!target.startsWith("mongodb:")) return urlsIn(target)[0]!
  const client = await MongoClient.connect(target)
  const { primary } = await client.db("admin").command({ hello: 1 })
  await client.close()
  if (primary === undefined) return new URL(target)
  // With the address of the proxy, a client would not find the proxy in the replica set's list of members.
  const [, login = "", path = "/"] = /^mongodb:\/\/([^@/]*@)?[^/]*(\/[^?]*)?/.exec(target) ?? []
  return new URL(`mongodb://${login}${primary}${path}?directConnection=true`)
}

/** A proxy to the host and port of a URL, or to one node of a cluster. It stops with the scope. */
export const tcpProxy = (target: string) =>
  Effect.flatMap(
    Effect.promise(() => oneNode(target)),
    proxyTo,
  )

const proxyTo = (target: URL) =>
  Effect.acquireRelease(
    Effect.async<TcpProxy & { readonly close: () => void }>((resume) => {
      const { hostname, port } = target
      const pairs = new Set<readonly [Socket, Socket]>()
      let state: "open" | "cut" | "frozen" = "open"
      const join = ([a, b]: readonly [Socket, Socket]) => {
        a.pipe(b)
        b.pipe(a)
      }
      const server = net.createServer((inward) => {
        if (state === "cut") return void inward.destroy()
        const outward = net.connect({ host: hostname, port: Number(port) })
        const pair = [inward, outward] as const
        pairs.add(pair)
        for (const socket of pair)
          socket
            .on("error", () => {})
            .on("close", () => {
              inward.destroy()
              outward.destroy()
              pairs.delete(pair)
            })
        if (state === "open") join(pair)
      })
      const cut = () => {
        state = "cut"
        for (const pair of pairs) for (const socket of pair) socket.destroy()
      }
      server.listen(0, "127.0.0.1", () => {
        const url = new URL(target)
        url.hostname = "127.0.0.1"
        url.port = String((server.address() as AddressInfo).port)
        resume(
          Effect.succeed({
            port: Number(url.port),
            url: url.href,
            cut,
            freeze: () => {
              state = "frozen"
              for (const [a, b] of pairs) {
                a.unpipe(b)
                b.unpipe(a)
              }
            },
            restore: () => {
              if (state === "frozen") for (const pair of pairs) join(pair)
              state = "open"
            },
            close: () => {
              cut()
              server.close()
            },
          }),
        )
      })
    }),
    ({ close }) => Effect.sync(close),
  )
