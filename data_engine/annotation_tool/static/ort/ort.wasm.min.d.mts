// Types of onnxruntime-web as far as decode_worker.js needs them; its own declarations are not part of `dist`.
export const env: { wasm: { wasmPaths: string; numThreads: number }; logLevel: string };

export class Tensor {
  constructor(type: "float32", data: Float32Array, dims: number[]);
  readonly data: Float32Array;
}

export class InferenceSession {
  static create(model: Uint8Array, options: { graphOptimizationLevel: string }): Promise<InferenceSession>;
  run(inputs: Record<string, Tensor>): Promise<Record<string, Tensor>>;
}
