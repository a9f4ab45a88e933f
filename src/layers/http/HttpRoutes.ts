/** All routes of the server: what a request needs, and the name of its route in spans and metrics. */
import { HttpApi } from "@effect/platform"
import { Context, Option, type Schema, SchemaAST } from "effect"
import { Destroys, RouteScopes, type Scope } from "../../services/AccessTokens.ts"
import { api } from "../../services/api/InteractionApi.ts"
import * as HttpPage from "./HttpPage.ts"

export interface Route {
  readonly method: string
  /** As the router has it: `/api/user/:userId`. */
  readonly path: string
  /** The path with its parameters in braces: `http.route`. */
  readonly template: string
  readonly pattern: RegExp
  /** A token needs one of them; empty: the route is open. */
  readonly scopes: ReadonlyArray<Scope>
  /** The names of its query parameters. */
  readonly parameters: ReadonlyArray<string>
  readonly destroys: boolean
}

const routeOf = (
  method: string,
  path: string,
  scopes: ReadonlyArray<Scope> = [],
  parameters: ReadonlyArray<string> = [],
  destroys = false,
): Route => ({
  method,
  path,
  template: path.replace(/:(\w+)/g, "{$1}"),
  pattern: new RegExp(`^${path.replace(/:(\w+)/g, "(?<$1>[^/]+)")}/?$`),
  scopes,
  parameters,
  destroys,
})

const namesOf = (parameters: Schema.Schema.All): ReadonlyArray<string> =>
  SchemaAST.getPropertySignatures(SchemaAST.encodedAST(parameters.ast)).map(({ name }) => String(name))

export const routes: ReadonlyArray<Route> = (() => {
  const found = ["/docs", "/openapi.json", ...HttpPage.paths].map((path) => routeOf("GET", path))
  HttpApi.reflect(api, {
    onGroup: () => {},
    onEndpoint: ({ endpoint: { method, path, urlParamsSchema }, mergedAnnotations }) => {
      // Without scopes the program does not start.
      const scopes = Context.unsafeGet(mergedAnnotations, RouteScopes)
      const parameters = Option.match(urlParamsSchema, { onNone: () => [], onSome: namesOf })
      found.push(routeOf(method, path, scopes, parameters, Context.get(mergedAnnotations, Destroys)))
    },
  })
  return found
})()

const openPaths = new Set(routes.flatMap(({ path, scopes }) => (scopes.length === 0 ? [path] : [])))
export const isOpenPath = (path: string): boolean => openPaths.has(path)

const byEndpoint = new Map(routes.map((route) => [`${route.method} ${route.path}`, route]))
export const routeAt = (method: string, path: string): Route | undefined =>
  byEndpoint.get(`${method} ${path}`)
