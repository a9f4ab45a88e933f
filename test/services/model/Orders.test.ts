import { expect, it } from "bun:test"
import { orderIdOf } from "../../../src/services/model/Orders.ts"

it("the id of an order is text of 1 to 128 characters, without the space around it", () => {
  expect([7, "7", " 7\t", "Ä 7"].map(orderIdOf)).toEqual(["7", "7", "7", "Ä 7"])
  expect(orderIdOf("😀".repeat(128))).toBe("😀".repeat(128))
  for (const bad of ["", " ", "x".repeat(129), "\ud800", true, null, undefined, {}, ["7"]])
    expect(orderIdOf(bad)).toBeUndefined()
})
