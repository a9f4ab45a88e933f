/** The environment: every variable has a valid default and example, and a bad value explains itself. */
import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inspect } from "node:util"
import { type ConfigError, ConfigProvider, Duration, Effect, Either, Option, Redacted } from "effect"
import { parseTokens } from "../../src/services/AccessTokens.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import * as Settings from "../../src/services/Settings.ts"
import { unknownVariables } from "../../src/services/UnknownVariables.ts"

type Environment = Readonly<Record<string, string>>

/** As `ConfigProvider.fromEnv` reads it. */
const provider = (environment: Environment) =>
  ConfigProvider.fromMap(new Map(Object.entries(environment)), { pathDelim: "_", seqDelim: "," })
const read = <A>(
  setting: Settings.Setting<A>,
  environment: Environment,
): Either.Either<A, ConfigError.ConfigError> =>
  Effect.runSync(Effect.either(provider(environment).load(setting)))
const valueOf = <A>(setting: Settings.Setting<A>, text?: string): A =>
  Either.getOrThrow(read(setting, text === undefined ? {} : { [setting.variable]: text }))
/** A value that may be secret or left out, as text. */
const shown = (value: unknown): unknown =>
  Option.isOption(value)
    ? Option.getOrUndefined(Option.map(value, shown))
    : Redacted.isRedacted(value)
      ? Redacted.value(value)
      : value
const refusal = (setting: Settings.Setting<unknown>, text: string): string =>
  Either.match(read(setting, { [setting.variable]: text }), {
    onLeft: String,
    onRight: (value) => `accepted ${String(value)}`,
  })

describe("every variable", () => {
  test("is in the list, once, under its own name", () => {
    const declared = Object.entries(Settings).flatMap(([name, value]) =>
      typeof value === "object" && "variable" in value ? [[name, value.variable]] : [],
    )
    const weights = Settings.eventTypeWeights.map(({ variable }) => variable)
    expect([...declared.map(([, variable]) => variable), ...weights].toSorted()).toEqual(
      Settings.all.map(({ variable }) => variable).toSorted(),
    )
    for (const [name, variable] of declared) expect(variable).toBe(name)
    expect(new Set(Settings.all.map(({ variable }) => variable)).size).toBe(Settings.all.length)
  })

  for (const setting of Settings.all) {
    const { example, fallback, meaning, variable } = setting

    test(`${variable}: may be left out or empty, and its example is valid`, () => {
      const unset = read(setting, {})
      expect(Either.isRight(unset)).toBe(true)
      for (const empty of ["", "  "]) expect(read(setting, { [variable]: empty })).toEqual(unset)
      expect(Either.isRight(read(setting, { [variable]: example }))).toBe(true)
      expect(Either.isRight(read(setting, { [variable]: ` ${example} ` }))).toBe(true)
      if (fallback === undefined) expect(unset).toEqual(Either.right(Option.none()))
      else expect(read(setting, { [variable]: fallback })).toEqual(unset)
    })

    test(`${variable}: has a line in .env.example that sets nothing`, () => {
      expect(meaning).not.toContain("\n")
      expect(Settings.toEnvExample(setting)).toBe(`# ${meaning}\n# ${variable}=${fallback ?? example}\n`)
    })
  }
})

describe("defaults", () => {
  test("are the documented ones", () => {
    const defaults = Object.fromEntries(
      Settings.all.flatMap(({ fallback, variable }) =>
        fallback === undefined ? [] : [[variable, fallback]],
      ),
    )
    expect(defaults).toMatchObject({
      OPENAI_EMBEDDING_MODEL: "text-embedding-3-small",
      EMBEDDING_DIMENSIONS: "1536",
      EMBEDDING_DECAY_LAMBDA: "0.023",
      EMBEDDING_HISTORY: "cumulative",
      EMBEDDING_WEIGHT_PURCHASE: "1",
      EMBEDDING_WEIGHT_SEARCH: "0.7",
      EMBEDDING_WEIGHT_CLICK: "0.5",
      EMBEDDING_WEIGHT_VIEW: "0.3",
      EMBEDDING_STORAGE: "vector",
      EMBEDDING_BATCH_ENABLED: "false",
      EMBEDDING_BATCH_WINDOW: "5",
      EMBEDDING_CACHE_TTL: "3600",
      PHRASE_TTL_DAYS: "30",
      POPULARITY_WEIGHT: "0.2",
      RATE_LIMIT_PER_USER: "100",
      WORKER_MAX_RETRIES: "5",
      WORKER_RETRY_DELAY: "5000",
      WORKER_PORT: "9464",
      API_PORT: "3000",
      DATA_DIR: "./data",
    })
  })

  test("and given values reach the knobs of folding, in their units", () => {
    const knobs = (environment: Environment, overrides: Partial<EmbeddingConfig.Knobs> = {}) =>
      Effect.runSync(
        EmbeddingConfig.EmbeddingConfig.pipe(
          Effect.provide(EmbeddingConfig.layer(overrides)),
          Effect.withConfigProvider(provider(environment)),
        ),
      )
    expect(knobs({})).toMatchObject({
      dimensions: 1536,
      lambda: 0.023,
      history: "cumulative",
      eventTypes: {
        weights: { product_purchase: 1, search: 0.7, product_click: 0.5, product_view: 0.3 },
      },
      batchEnabled: false,
      batchWindow: Duration.seconds(5),
      cacheTtl: Duration.hours(1),
      maxRetries: 5,
      retryDelay: Duration.seconds(5),
    })
    expect(
      knobs(
        { EMBEDDING_BATCH_WINDOW: "0.25", WORKER_RETRY_DELAY: "200", EMBEDDING_WEIGHT_VIEW: "0.1" },
        { dimensions: 8 },
      ),
    ).toMatchObject({
      dimensions: 8,
      eventTypes: { weights: { product_purchase: 1, product_view: 0.1 } },
      batchWindow: Duration.millis(250),
      retryDelay: Duration.millis(200),
    })
  })
})

describe("values", () => {
  test("are read in their types, with blanks around them ignored", () => {
    expect(valueOf(Settings.EMBEDDING_DIMENSIONS, " 384 ")).toBe(384)
    expect(valueOf(Settings.EMBEDDING_DECAY_LAMBDA, "0")).toBe(0)
    expect(valueOf(Settings.RATE_LIMIT_PER_USER, "0")).toBe(0)
    expect(valueOf(Settings.WORKER_MAX_RETRIES, "0")).toBe(0)
    expect(valueOf(Settings.API_PORT, "0")).toBe(0)
    for (const [text, value] of [
      ["true", true],
      ["1", true],
      ["false", false],
      ["0", false],
    ] as const)
      expect(valueOf(Settings.EMBEDDING_BATCH_ENABLED, text)).toBe(value)
    expect(valueOf(Settings.LOG_FORMAT, "json")).toEqual(Option.some("json"))
    expect(valueOf(Settings.LOG_FORMAT)).toEqual(Option.none())
    expect(valueOf(Settings.PHRASE_TTL_DAYS, "0.5")).toBe(0.5)
  })

  test("may hold commas and underscores: they are not split", () => {
    const hosts = "mongodb://a.example:27017,b.example:27017,c.example:27017/?replicaSet=rs_0&w=majority"
    expect(shown(valueOf(Settings.MONGODB_URL, hosts))).toBe(hosts)
    expect(shown(valueOf(Settings.API_TOKENS, "one_1, two_2"))).toBe("one_1, two_2")
  })

  test("come from the process's environment", () => {
    const { variable } = Settings.MONGODB_URL
    const before = process.env[variable]
    process.env[variable] = "mongodb://a:1,b:2/?replicaSet=rs"
    try {
      const loaded = Effect.runSync(ConfigProvider.fromEnv().load(Settings.MONGODB_URL))
      expect(shown(loaded)).toBe("mongodb://a:1,b:2/?replicaSet=rs")
    } finally {
      if (before === undefined) delete process.env[variable]
      else process.env[variable] = before
    }
  })
})

describe("addresses of servers", () => {
  const good: ReadonlyArray<readonly [Settings.Setting<unknown>, ReadonlyArray<string>]> = [
    [
      Settings.RABBITMQ_DSN,
      [
        "amqp://localhost",
        "amqp://guest:guest@127.0.0.1:5672",
        "amqp://user:p%40ss%2Fword@broker.example:5672/%2F",
        "amqps://user:secret@broker.example/vhost?heartbeat=10&frameMax=8192",
        "amqp://guest:guest@[::1]:5672/a_b",
        "amqp://user:secret@a:5672,b:5673/vhost",
      ],
    ],
    [
      Settings.MYSQL_URL,
      [
        "mysql://root@localhost/user_embeddings",
        "mysql://user:p%40ss%3Aw%23rd%2F@127.0.0.1:3306/user_embeddings?ssl=true",
        "mariadb://user:secret@db.example/user_embeddings",
      ],
    ],
    [
      Settings.MONGODB_URL,
      [
        "mongodb://localhost",
        "mongodb://user:p%40ss@127.0.0.1:27017/admin?authSource=admin",
        "mongodb://a:27017,b:27018,c:27019/?replicaSet=rs0&readPreference=primary",
        "mongodb://user:p%40ss@a,b/db?w=majority",
        "mongodb+srv://user:secret@cluster0.example.mongodb.net/?retryWrites=true",
      ],
    ],
  ]
  for (const [setting, addresses] of good)
    test(`${setting.variable} is taken as it is written`, () => {
      for (const address of addresses) expect(shown(valueOf(setting, address))).toBe(address)
    })

  test("of another kind, or of none, are refused without being repeated", () => {
    const bad: ReadonlyArray<readonly [Settings.Setting<unknown>, string, string]> = [
      [Settings.RABBITMQ_DSN, "amqp:// or amqps://", "http://guest:hunter2@127.0.0.1:5672"],
      [Settings.RABBITMQ_DSN, "amqp:// or amqps://", "guest:hunter2@127.0.0.1:5672"],
      [Settings.RABBITMQ_DSN, "amqp:// or amqps://", "amqp:hunter2"],
      [Settings.RABBITMQ_DSN, "amqp:// or amqps://", "amqp://"],
      [Settings.MYSQL_URL, "mysql:// or mariadb://", "postgres://user:hunter2@127.0.0.1/db"],
      [Settings.MYSQL_URL, "mysql:// or mariadb://", "mysql://user:hunter2#x@127.0.0.1/db"],
      [Settings.MYSQL_URL, "mysql:// or mariadb://", "mysql://user:hunter2@127.0.0.1:port/db"],
      [Settings.MONGODB_URL, "mongodb:// or mongodb+srv://", "http://hunter2:27017"],
      [Settings.MONGODB_URL, "mongodb:// or mongodb+srv://", "mongodb://"],
      [Settings.MONGODB_URL, "mongodb:// or mongodb+srv://", "hunter2:27017,b:27017"],
    ]
    for (const [setting, starts, address] of bad) {
      const told = refusal(setting, address)
      expect([address, told]).toEqual([
        address,
        expect.stringContaining(`${setting.variable}: must be a URL that starts with ${starts}`),
      ])
      expect(told).toContain(`Example: ${setting.variable}=${setting.example}`)
      expect(told).not.toContain("hunter2")
    }
  })
})

test("a % in a URL that begins no percent-encoded character is refused, with the variable and without the password", () => {
  for (const [setting, address] of [
    [Settings.RABBITMQ_DSN, "amqp://user:hunter2%@a,b"],
    [Settings.MYSQL_URL, "mysql://user:hunter2%zz@a/shop"],
    [Settings.MYSQL_URL, "mysql://user@a/shop%"],
    [Settings.MONGODB_URL, "mongodb://user:hunter2%ff@a"],
    [Settings.RABBITMQ_MANAGEMENT_URL, "http://user:hunter2%@a:15672"],
  ] as const) {
    const told = refusal(setting, address)
    expect(told).toContain(`${setting.variable}: has a % that begins no percent-encoded character`)
    expect(told).not.toContain("hunter2")
  }
})

test("every number has a greatest value", () => {
  const numeric = Settings.all.filter(({ example }) => Number.isFinite(Number(example)))
  expect(numeric.length).toBeGreaterThan(20)
  for (const setting of numeric.filter(({ variable }) => variable !== "NO_COLOR"))
    expect([setting.variable, refusal(setting, "1e15")]).toEqual([
      setting.variable,
      expect.stringContaining("must be"),
    ])
})

test("variables that look like settings, but are none, are named with what may be meant", () => {
  const environment = {
    API_TOKEN: "",
    API_TOKENS: "t",
    EMBEDING_BATCH_WINDOW: "5",
    EMBEDDING_VELOCITY: "1",
    WORKER_PREFECTH: "10",
    MONGODB_URI: "mongodb://a",
    API_PORT_3000_TCP: "tcp://10.0.0.1:3000",
    WORKER_SERVICE_HOST: "10.0.0.1",
    MYSQL_ROOT_PASSWORD: "x",
    OPENAI_ORG_ID: "x",
    PATH: "/bin",
  }
  expect(unknownVariables(environment)).toEqual([
    "API_TOKEN (API_TOKENS?)",
    "EMBEDING_BATCH_WINDOW (EMBEDDING_BATCH_WINDOW?)",
    "EMBEDDING_VELOCITY",
    "WORKER_PREFECTH (WORKER_PREFETCH?)",
    "MONGODB_URI (MONGODB_URL?)",
  ])
})

describe("NAME_FILE", () => {
  const folder = mkdtempSync(join(tmpdir(), "secrets-"))
  afterAll(() => rmSync(folder, { recursive: true }))
  const fileOf = (text: string) => {
    const path = join(folder, crypto.randomUUID())
    writeFileSync(path, text)
    return path
  }
  const files = Settings.all.filter(Settings.mayBeFile)

  const problemOf = (setting: Settings.Setting<unknown>, environment: Environment) =>
    String(Either.getOrThrow(Either.flip(read(setting, environment))))

  test("is there for every secret and every URL", () => {
    expect(files.map(({ variable }) => variable).toSorted()).toEqual([
      "API_TOKENS",
      "JAEGER_URL",
      "MONGODB_PASSWORD",
      "MONGODB_URL",
      "MYSQL_PASSWORD",
      "MYSQL_URL",
      "OPENAI_API_KEY",
      "OPENAI_BASE_URL",
      "OTEL_EXPORTER_OTLP_ENDPOINT",
      "RABBITMQ_DSN",
      "RABBITMQ_MANAGEMENT_URL",
      "RABBITMQ_PASSWORD",
      "TRACES_URL",
    ])
    expect(
      unknownVariables(Object.fromEntries(files.map(({ variable }) => [`${variable}_FILE`, "x"]))),
    ).toEqual([])
    expect(unknownVariables({ API_PORT_FILE: "x" })).toEqual(["API_PORT_FILE"])
  })

  for (const setting of files)
    test(`${setting.variable}_FILE names the file of the value`, () => {
      const { example, variable } = setting
      const named = `${variable}_FILE`
      for (const end of ["", "\n", "\r\n"])
        expect(read(setting, { [named]: fileOf(example + end) })).toEqual(
          read(setting, { [variable]: example }),
        )
      expect(problemOf(setting, { [named]: fileOf(example), [variable]: example })).toContain(
        `${variable} and ${named} are both set`,
      )
      expect(Either.isRight(read(setting, { [named]: fileOf(example), [variable]: "" }))).toBe(true)
      expect(problemOf(setting, { [named]: join(folder, "none") })).toContain(
        `${named} "${folder}/none": the file`,
      )
      expect(problemOf(setting, { [named]: fileOf("\n") })).toContain("the file is empty")
    })

  test("a password keeps its blanks and belongs into its URL", () => {
    const environment = {
      MYSQL_URL_FILE: fileOf("mysql://u@db/e\n"),
      MYSQL_PASSWORD_FILE: fileOf(" p@ss \n"),
    }
    expect(shown(Either.getOrThrow(read(Settings.MYSQL_URL, environment)))).toBe(
      "mysql://u:%20p%40ss%20@db/e",
    )
  })
})

describe("API_TOKENS", () => {
  const parsed = (list: string) =>
    Either.getOrThrow(parseTokens(list)).map(({ scopes, secret }) => [
      scopes.length === 5 ? "all" : scopes.join("+"),
      secret,
    ])

  test("scopes stand before the first `=`, if there are nothing but scopes", () => {
    for (const [entry, scope, secret] of [
      ["write=abc", "write", "abc"],
      ["write+read=abc==", "write+read", "abc=="],
      ["read+read=a", "read", "a"],
      ["operate==", "operate", "="],
      ["write+reed=abc", "all", "write+reed=abc"],
      ["abc==", "all", "abc=="],
      ["=write", "all", "=write"],
      ["Write=a", "all", "Write=a"],
      ["write+person+read+catalogue+operate=a", "all", "a"],
    ] as const)
      expect([entry, parsed(entry)]).toEqual([entry, [[scope, secret]]])
    expect(parsed("read=old, read=new")).toEqual([
      ["read", "old"],
      ["read", "new"],
    ])
  })

  test("a scope without a secret and a secret with two meanings are refused", () => {
    for (const list of ["write=", "one,read+write="])
      expect(refusal(Settings.API_TOKENS, list)).toContain("each a secret or scope=secret")
    expect(refusal(Settings.API_TOKENS, "write=a,read=a")).toContain("has the same secret twice")
  })
})

test("a password of its own variable is encoded into each node of its URL, and replaces one that is there", () => {
  const password = "p@ss/w:r d,%#?"
  const encoded = encodeURIComponent(password)
  const cases: ReadonlyArray<readonly [Settings.Setting<unknown>, string, string, string]> = [
    [Settings.MYSQL_URL, "MYSQL_PASSWORD", "mysql://root@db:3306/e", `mysql://root:${encoded}@db:3306/e`],
    [Settings.MYSQL_URL, "MYSQL_PASSWORD", "mysql://root:old@db/e", `mysql://root:${encoded}@db/e`],
    [
      Settings.RABBITMQ_DSN,
      "RABBITMQ_PASSWORD",
      "amqp://u@a,amqp://u@b",
      `amqp://u:${encoded}@a,amqp://u:${encoded}@b`,
    ],
    [
      Settings.MONGODB_URL,
      "MONGODB_PASSWORD",
      "mongodb://u@a,b/?tls=true",
      `mongodb://u:${encoded}@a,b/?tls=true`,
    ],
    [Settings.MONGODB_URL, "MONGODB_PASSWORD", "mongodb://a:1,b:2", "mongodb://a:1,b:2"],
  ]
  for (const [setting, variable, url, complete] of cases) {
    const found = read(setting, { [setting.variable]: url, [variable]: password })
    expect([url, shown(Either.getOrThrow(found))]).toEqual([url, complete])
  }
})

describe("a bad value", () => {
  const number = (rule: string) => `must be a number${rule}`
  const table: ReadonlyArray<readonly [Settings.Setting<unknown>, ReadonlyArray<string>, string]> = [
    [
      Settings.EMBEDDING_DIMENSIONS,
      ["0", "-1", "1.5", "16385", "many", "1e999", "NaN", "1536 d"],
      "must be an integer from 1 to 16384",
    ],
    [Settings.EMBEDDING_DECAY_LAMBDA, ["-0.1", "fast", "Infinity"], number(" from 0 to 100")],
    [Settings.EMBEDDING_HISTORY, ["Cumulative", "both"], "must be one of cumulative, recency"],
    [
      Settings.eventTypeWeights[3]!,
      ["0", "-1", "heavy", "Infinity", "1e200"],
      number(" greater than 0, and at most 1000"),
    ],
    [Settings.EMBEDDING_STORAGE, ["blob"], "must be one of vector, array"],
    [Settings.EMBEDDING_BATCH_ENABLED, ["yes", "TRUE", "2"], "must be one of true, false, 1, 0"],
    [Settings.EMBEDDING_BATCH_WINDOW, ["0", "-5", "5s", "1e9"], number(" greater than 0, and at most 300")],
    [Settings.EMBEDDING_CACHE_TTL, ["0", "1h"], number(" greater than 0, and at most 2592000")],
    [Settings.POPULARITY_WEIGHT, ["-0.2", "some"], number(" from 0 to 100")],
    [Settings.RATE_LIMIT_PER_USER, ["-1", "0.5", "9007199254740993"], "must be an integer from 0 to 1000000"],
    [Settings.WORKER_MAX_RETRIES, ["-1", "21", "2.5"], "must be an integer from 0 to 20"],
    [Settings.WORKER_RETRY_DELAY, ["0", "0.5", "5s"], "must be an integer from 1 to 60000"],
    [Settings.WORKER_PREFETCH, ["0", "65536"], "must be an integer from 1 to 65535"],
    [Settings.API_PORT, ["-1", "65536", "http"], "must be an integer from 0 to 65535"],
    [
      Settings.OPENAI_BASE_URL,
      ["api.openai.com", "ftp://a"],
      "must be a URL that starts with http:// or https://",
    ],
    [
      Settings.OTEL_EXPORTER_OTLP_ENDPOINT,
      ["127.0.0.1:4318"],
      "must be a URL that starts with http:// or https://",
    ],
    [
      Settings.API_CORS_ORIGINS,
      ["shop.example", "https://shop.example/", "https://a.example,", "ftp://a.example", "https://*.example"],
      "must be * or origins as https://shop.example, without a path, separated by commas",
    ],
    [Settings.LOG_LEVEL, ["INFO", "trace"], "must be one of debug, info, warn, error"],
    [Settings.LOG_FORMAT, ["xml"], "must be one of json, pretty"],
  ]
  for (const [setting, values, rule] of table)
    test(`of ${setting.variable} is told with its problem and an example`, () => {
      const { example, variable } = setting
      for (const value of values)
        expect(refusal(setting, value)).toContain(
          `${variable} ${JSON.stringify(value)}: ${rule}. Example: ${variable}=${example}`,
        )
    })

  test("of a secret is never printed, however the error is shown", () => {
    const bad: ReadonlyArray<readonly [Settings.Setting<unknown>, string]> = [
      [Settings.RABBITMQ_DSN, "http://user:hunter2@host"],
      [Settings.RABBITMQ_MANAGEMENT_URL, "amqp://user:hunter2@host"],
      [Settings.MYSQL_URL, "user:hunter2@host"],
      [Settings.MONGODB_URL, "user:hunter2@host"],
      [Settings.OPENAI_API_KEY, "sk-hunter2 with a blank"],
      [Settings.OPENAI_API_KEY, "sk-hunter2\nX: 1"],
      [Settings.API_TOKENS, "hunter2 with a blank"],
    ]
    expect(new Set(bad.map(([setting]) => setting))).toEqual(
      // Any text is a valid password.
      new Set(Settings.all.filter(({ secret, variable }) => secret && !variable.endsWith("_PASSWORD"))),
    )
    for (const [setting, value] of bad) {
      const error = Either.getOrThrow(Either.flip(read(setting, { [setting.variable]: value })))
      for (const text of [String(error), JSON.stringify(error), inspect(error, { depth: 20 })]) {
        expect(text).toContain(setting.variable)
        expect(text).not.toContain("hunter2")
      }
    }
  })

  test("is found beside another one: both are named at once", () => {
    const start = Effect.runSync(
      EmbeddingConfig.EmbeddingConfig.pipe(
        Effect.provide(EmbeddingConfig.layerConfig),
        Effect.withConfigProvider(provider({ EMBEDDING_HISTORY: "x", WORKER_PREFETCH: "y" })),
        Effect.flip,
      ),
    )
    expect(String(start)).toContain('EMBEDDING_HISTORY "x"')
    expect(String(start)).toContain('WORKER_PREFETCH "y"')
  })
})

describe("secrets", () => {
  test("are redacted from the moment they are read", () => {
    for (const setting of Settings.all.filter(({ secret }) => secret)) {
      const value = valueOf(setting, setting.example)
      for (const text of [String(value), JSON.stringify(value), inspect(value, { depth: 20 })])
        expect(text).not.toContain(setting.example)
      expect(shown(value)).toBe(setting.example)
    }
  })

  test("are masked where settings are displayed, and nothing else is", () => {
    for (const setting of Settings.all)
      expect(Settings.display(setting, "hunter2")).toBe(setting.secret ? "<redacted>" : "hunter2")
  })

  test("API_TOKENS without a single token is refused: it would open the API to everybody", () => {
    const rule = "API_TOKENS: must be tokens of printable ASCII without spaces, separated by commas"
    for (const list of [",", " , ", "one,", ",one", "one,,two", "one two", "tökén"])
      expect([list, refusal(Settings.API_TOKENS, list)]).toEqual([list, expect.stringContaining(rule)])
    for (const list of ["one", "one,two", "one, two", "a!b~c"])
      expect(shown(valueOf(Settings.API_TOKENS, list))).toBe(list)
  })
})
