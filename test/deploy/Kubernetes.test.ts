/** The manifests of deploy/kubernetes are valid, and fit the program: its variables, commands, ports and probes. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { Schema } from "effect"

const folder = resolve(import.meta.dir, "../../deploy/kubernetes")
const read = (name: string) => readFileSync(join(folder, name), "utf8")
const files = readdirSync(folder).filter((name) => name.endsWith(".yaml"))

const Labels = Schema.Record({ key: Schema.String, value: Schema.String })
const Probe = Schema.Struct({ httpGet: Schema.Struct({ path: Schema.String, port: Schema.String }) })
const Container = Schema.Struct({
  image: Schema.String,
  args: Schema.Array(Schema.String),
  env: Schema.Array(Schema.Struct({ name: Schema.String, value: Schema.String })),
  ports: Schema.optionalWith(
    Schema.Array(Schema.Struct({ name: Schema.String, containerPort: Schema.Number })),
    { default: () => [] },
  ),
  livenessProbe: Schema.optional(Probe),
  readinessProbe: Schema.optional(Probe),
  startupProbe: Schema.optional(Probe),
})
const Resource = Schema.Struct({
  kind: Schema.String,
  metadata: Schema.Struct({ name: Schema.String }),
  spec: Schema.optionalWith(
    Schema.Struct({
      selector: Schema.optional(Schema.Union(Schema.Struct({ matchLabels: Labels }), Labels)),
      podSelector: Schema.optional(Schema.Struct({ matchLabels: Labels })),
      scaleTargetRef: Schema.optional(Schema.Struct({ name: Schema.String })),
      template: Schema.optional(
        Schema.Struct({
          metadata: Schema.Struct({ labels: Labels }),
          spec: Schema.Struct({ containers: Schema.Array(Container) }),
        }),
      ),
    }),
    { default: () => ({}) },
  ),
})
const Kustomization = Schema.Struct({
  resources: Schema.Array(Schema.String),
  images: Schema.Array(Schema.Struct({ name: Schema.String })),
  configMapGenerator: Schema.Array(Schema.Struct({ literals: Schema.Array(Schema.String) })),
})

const kustomization = Schema.decodeUnknownSync(Kustomization)(Bun.YAML.parse(read("kustomization.yaml")))
const resources = files
  .filter((name) => name !== "kustomization.yaml")
  .flatMap((name) => Bun.YAML.parse(read(name)))
  .map((document) => Schema.decodeUnknownSync(Resource)(document))
const workloads = resources.flatMap(({ metadata, spec }) =>
  spec.template === undefined
    ? []
    : [
        {
          name: metadata.name,
          labels: spec.template.metadata.labels,
          container: spec.template.spec.containers[0]!,
        },
      ],
)
const variables = new Set(
  [...readFileSync(join(folder, "../../.env.example"), "utf8").matchAll(/^# ([A-Z0-9_]+)=/gm)].map(
    ([, name]) => name!,
  ),
)

test("the kustomization names every file but the one that needs KEDA", () => {
  expect([...kustomization.resources, "autoscaling.yaml", "kustomization.yaml"].toSorted()).toEqual(
    files.toSorted(),
  )
  expect(workloads.map(({ name }) => name).toSorted()).toEqual(["api", "setup", "worker"])
})

test("every variable is one of the program, and a secret stands in a file of its name", () => {
  expect(variables.size).toBeGreaterThan(30)
  for (const literal of kustomization.configMapGenerator.flatMap(({ literals }) => literals))
    expect(variables).toContain(literal.split("=")[0]!)
  for (const { container } of workloads)
    for (const { name, value } of container.env) {
      const variable = name.replace(/_FILE$/, "")
      expect(variables).toContain(variable)
      if (name !== variable) expect(value).toBe(`/secrets/${variable}`)
    }
})

test("each container runs the command of its name, from the image that the kustomization replaces", () => {
  for (const { container, name } of workloads) {
    expect(container.args).toEqual([name])
    expect(kustomization.images.map((image) => image.name)).toEqual([container.image])
  }
})

test("probes ask the routes of the program, on the port that it listens on", () => {
  for (const { container, name } of workloads.filter(({ name }) => name !== "setup")) {
    const port = container.env.find(
      (variable) => variable.name === (name === "api" ? "API_PORT" : "WORKER_PORT"),
    )
    expect(container.ports.map(({ containerPort }) => String(containerPort))).toEqual([port!.value])
    const { livenessProbe, readinessProbe, startupProbe } = container
    expect([livenessProbe, readinessProbe, startupProbe].map((probe) => probe?.httpGet)).toEqual(
      ["/livez", "/readyz", "/livez"].map((path) => ({ path, port: container.ports[0]!.name })),
    )
  }
})

test("services, budgets, policies and the autoscaler select pods that exist", () => {
  const selectors = resources.flatMap(({ spec: { podSelector, selector } }) => {
    const chosen = podSelector ?? selector
    return chosen === undefined ? [] : ["matchLabels" in chosen ? chosen.matchLabels : chosen]
  })
  expect(selectors.length).toBeGreaterThan(6)
  for (const wanted of selectors)
    expect(
      workloads.some(({ labels }) =>
        Object.entries(wanted as Record<string, string>).every(([key, value]) => labels[key] === value),
      ),
    ).toBe(true)
  const scaled = resources.flatMap(({ spec }) => spec.scaleTargetRef?.name ?? [])
  expect(scaled).toEqual(["worker"])
})

// The whole test command leaves this out: installing the schemas takes as long as all other tests of this folder.
const isWhole = process.env.FAILURES === "brief"
if (!isWhole)
  describe("the schemas of Kubernetes", () => {
    const packages = mkdtempSync(join(tmpdir(), "kubernetes-validate-"))
    beforeAll(async () => {
      const pip = [
        "python3",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--root-user-action=ignore",
        "--target",
        packages,
      ]
      expect(await Bun.spawn([...pip, "kubernetes-validate==1.37.0"]).exited).toBe(0)
    }, 60_000)
    afterAll(() => rmSync(packages, { recursive: true }))

    test("accept every manifest, without unknown fields", async () => {
      const names = kustomization.resources.map((name) => join(folder, name))
      const child = Bun.spawn(["python3", "-m", "kubernetes_validate", "--strict", ...names], {
        env: { ...process.env, PYTHONPATH: packages },
        stdout: "pipe",
        stderr: "pipe",
      })
      const out = await new Response(child.stdout).text()
      expect(await child.exited).toBe(0)
      for (const name of names) expect(out).toContain(`${name} passed`)
    }, 60_000)
  })
