import { Effect, Layer } from "effect"; export const layer = Layer.empty; export const layerConfig = Layer.empty; export const dependency = Effect.succeed(null as never)
