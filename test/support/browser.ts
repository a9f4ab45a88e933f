/** A real browser for tests of the page. Without one their suites are skipped with a message. */
import { describe, test } from "bun:test"
import { existsSync } from "node:fs"
import { chromium } from "playwright-core"

const executablePath = "/usr/bin/chromium"

export const withBrowser = (name: string, suite: () => void) =>
  existsSync(executablePath)
    ? describe(name, suite)
    : test.skip(`${name}: SKIPPED, needs ${executablePath} (Debian package chromium)`, () => {})

export const launch = () => chromium.launch({ executablePath, args: ["--no-sandbox"] })
