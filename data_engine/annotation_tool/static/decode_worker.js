// The decoder beside the page's own thread, so that drawing never waits for it.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
ort.env.logLevel = "error";

let session = null;
let embedding = null;

const steps = {
  async open({ url }) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`the decoder cannot be had (${answer.status})`);
    session = await ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), { graphOptimizationLevel: "all" });
    return { threads: ort.env.wasm.numThreads };
  },

  async image({ values, shape }) {
    embedding = new ort.Tensor("float32", values, [1, ...shape]);
    return {};
  },

  async decode({ coords, labels, mask, side }) {
    const none = new Float32Array(side * side);
    const answer = await session.run({
      image_embeddings: embedding,
      point_coords: new ort.Tensor("float32", coords, [1, labels.length, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, labels.length]),
      mask_input: new ort.Tensor("float32", mask || none, [1, 1, side, side]),
      has_mask_input: new ort.Tensor("float32", new Float32Array([mask ? 1 : 0]), [1]),
    });
    return { scores: Array.from(answer.iou_predictions.data), logits: new Float32Array(answer.low_res_masks.data) };
  },
};

self.onmessage = async ({ data }) => {
  try {
    const answer = await steps[data.kind](data);
    self.postMessage({ id: data.id, ...answer }, answer.logits ? [answer.logits.buffer] : []);
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error.message || error) });
  }
};
