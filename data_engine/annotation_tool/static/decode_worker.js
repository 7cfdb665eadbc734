// Web worker that runs the mask decoder, so that the page stays responsive.
import * as ort from "./ort/ort.wasm.min.mjs";

/** @typedef {{kind: "open", url: string}} OpenMessage */
/** @typedef {{kind: "image", values: Float32Array, shape: number[]}} ImageMessage */
/**
 * @typedef {object} DecodeMessage
 * @property {"decode"} kind
 * @property {Float32Array} coords
 * @property {Float32Array} labels
 * @property {Float32Array | null} mask
 * @property {number} side
 */
/** @typedef {OpenMessage | ImageMessage | DecodeMessage} WorkerMessage */

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
ort.env.logLevel = "error";

/** @type {ort.InferenceSession | null} */
let session = null;
/** @type {ort.Tensor | null} */
let embedding = null;

/** @param {OpenMessage} message */
async function open({ url }) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the decoder cannot be loaded (HTTP ${response.status})`);
  session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()), { graphOptimizationLevel: "all" });
  return { threads: ort.env.wasm.numThreads };
}

/** @param {ImageMessage} message */
function setImage({ values, shape }) {
  embedding = new ort.Tensor("float32", values, [1, ...shape]);
  return {};
}

/** @param {DecodeMessage} message */
async function decode({ coords, labels, mask, side }) {
  if (!session || !embedding) throw new Error("the decoder got a prompt before an image");
  const outputs = await session.run({
    image_embeddings: embedding,
    point_coords: new ort.Tensor("float32", coords, [1, labels.length, 2]),
    point_labels: new ort.Tensor("float32", labels, [1, labels.length]),
    mask_input: new ort.Tensor("float32", mask || new Float32Array(side * side), [1, 1, side, side]),
    has_mask_input: new ort.Tensor("float32", new Float32Array([mask ? 1 : 0]), [1]),
  });
  return { scores: Array.from(outputs.iou_predictions.data), logits: new Float32Array(outputs.low_res_masks.data) };
}

/**
 * @param {WorkerMessage} message
 * @returns {Promise<{threads?: number, scores?: number[], logits?: Float32Array<ArrayBuffer>}>}
 */
async function handle(message) {
  if (message.kind === "open") return open(message);
  if (message.kind === "image") return setImage(message);
  return decode(message);
}

self.onmessage = async ({ data }) => {
  try {
    const result = await handle(data);
    self.postMessage({ id: data.id, ...result }, { transfer: result.logits ? [result.logits.buffer] : [] });
  } catch (error) {
    self.postMessage({ id: data.id, error: error instanceof Error ? error.message : String(error) });
  }
};
