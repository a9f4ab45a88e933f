/** The bill of materials of a release, in CycloneDX 1.6: what bun.lock installs for production. */
import { Schema } from "effect"

const Names = Schema.optionalWith(Schema.Record({ key: Schema.String, value: Schema.String }), {
  default: () => ({}),
})
const Needs = Schema.Struct({ dependencies: Names, optionalDependencies: Names, peerDependencies: Names })
const namesIn = ({ dependencies, optionalDependencies, peerDependencies }: typeof Needs.Type) =>
  Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies })
const Package = Schema.Tuple(Schema.String, Schema.String, Needs, Schema.String)
type Package = typeof Package.Type
const Lock = Schema.Struct({
  workspaces: Schema.Struct({ "": Needs }),
  packages: Schema.Record({ key: Schema.String, value: Package }),
})

const splitName = (id: string): readonly [name: string, version: string] => {
  const at = id.lastIndexOf("@")
  return [id.slice(0, at), id.slice(at + 1)]
}
const purlOf = ([id]: Package): string => {
  const [name, version] = splitName(id)
  return `pkg:npm/${name.replace(/^@/, "%40")}@${version}`
}

/** The package that `parent` gets for a name: its own, or that of the nearest package above it. */
const find = (packages: Readonly<Record<string, Package>>, parent: string, name: string) => {
  for (let above = parent; above !== ""; above = above.replace(/(^|\/)(@[^/]+\/)?[^/]+$/, "")) {
    const own = `${above}/${name}`
    if (packages[own] !== undefined) return own
  }
  return packages[name] === undefined ? undefined : name
}

/** `lock`: the text of bun.lock, which is JSON with commas before closing brackets. */
export const toSbom = (lock: string, manifest: { readonly name: string; readonly version: string }) => {
  const { packages, workspaces } = Schema.decodeUnknownSync(Lock)(
    JSON.parse(lock.replace(/,(\s*[\]}])/g, "$1")),
  )
  const keysOf = (parent: string, ...names: ReadonlyArray<string>) =>
    names.flatMap((name) => find(packages, parent, name) ?? [])
  const direct = keysOf("", ...namesIn(workspaces[""]))
  const needed = new Map<string, ReadonlyArray<string>>()
  for (const waiting = [...direct]; waiting.length > 0; ) {
    const key = waiting.pop()!
    if (needed.has(key)) continue
    const below = keysOf(key, ...namesIn(packages[key]![2]))
    needed.set(key, below)
    waiting.push(...below)
  }
  const purlAt = (key: string) => purlOf(packages[key]!)
  const components = new Map(
    [...needed.keys()].map((key) => {
      const [id, , , integrity] = packages[key]!
      const [name, version] = splitName(id)
      const content = Buffer.from(integrity.replace("sha512-", ""), "base64").toString("hex")
      const purl = purlAt(key)
      return [
        purl,
        { type: "library", "bom-ref": purl, name, version, purl, hashes: [{ alg: "SHA-512", content }] },
      ]
    }),
  )
  const root = `pkg:npm/${manifest.name}@${manifest.version}`
  const application = { type: "application", ...manifest, purl: root, licenses: [{ license: { id: "MIT" } }] }
  const dependencies = new Map([
    [root, { ref: root, dependsOn: [...new Set(direct.map(purlAt))].toSorted() }],
    ...[...needed].map(([key, below]) => {
      const ref = purlAt(key)
      return [ref, { ref, dependsOn: [...new Set(below.map(purlAt))].toSorted() }] as const
    }),
  ])
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: { component: { ...application, "bom-ref": root } },
    components: [...components.values()].toSorted((a, b) => (a.purl < b.purl ? -1 : 1)),
    dependencies: [...dependencies.values()],
  }
}
