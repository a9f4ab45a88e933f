/** Requests to the API, with the token if there is one. The token is kept until the tab is closed. */

const key = "user-embeddings token"
export const token = () => sessionStorage.getItem(key) ?? ""
export const setToken = (value) =>
  value === "" ? sessionStorage.removeItem(key) : sessionStorage.setItem(key, value)

const headers = () => (token() === "" ? {} : { authorization: `Bearer ${token()}` })

/** The API refused the request. The message is the detail of its problem document. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail)
    this.status = status
  }
}

const refusal = async (response) => {
  const problem = await response.json().catch(() => ({}))
  return new Refused(response.status, problem.detail ?? `the server answered ${response.status}`)
}

export const get = async (path, signal) => {
  const response = await fetch(path, { headers: headers(), ...(signal && { signal }) })
  if (!response.ok) throw await refusal(response)
  return response.json()
}

export const post = async (path, body) => {
  const response = await fetch(path, {
    method: "POST",
    headers: { ...headers(), "content-type": "application/json" },
    body: JSON.stringify(body),
  })
  if (!response.ok) throw await refusal(response)
  return response.json()
}

/** Readiness, also when the status is 503. */
export const readiness = async () => (await fetch("/readyz")).json()

/**
 * Reads server-sent events and reconnects. `EventSource` cannot send a token, so the stream is parsed here.
 * `onState` receives `live`, `lost`, or `refused` and why.
 */
export const follow = (path, onMessage, onState) => {
  let stopped = false
  const abort = new AbortController()
  const read = async () => {
    const response = await fetch(path, { headers: headers(), signal: abort.signal })
    if (!response.ok) throw await refusal(response)
    onState("live")
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
    let buffer = ""
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      buffer += value
      const events = buffer.split("\n\n")
      buffer = events.pop()
      for (const event of events) if (event.startsWith("data: ")) onMessage(JSON.parse(event.slice(6)))
    }
  }
  const loop = async () => {
    for (let tries = 0; !stopped; tries++) {
      try {
        await read()
        tries = 0
      } catch (error) {
        if (stopped) return
        if (error instanceof Refused && error.status === 401)
          return onState("refused", "This API needs a token.")
        if (error instanceof Refused && error.status === 403) return onState("refused", `${error.message}.`)
      }
      if (!stopped) onState("lost")
      await new Promise((resolve) => setTimeout(resolve, Math.min(10_000, 500 * 2 ** tries)))
    }
  }
  loop()
  return () => {
    stopped = true
    abort.abort()
  }
}
