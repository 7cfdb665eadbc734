// Mask predictions for prompts: from a web worker, or from the server if the browser cannot run the decoder.
import { api, header } from "./api.js";
import { sleep } from "./dom.js";
import { Emitter } from "./emitter.js";
import { base64, fromHalf, toHalf } from "./float16.js";
import { LABELS, promptRows } from "./prompt_rows.js";
import { Resize } from "./resample.js";

/** @import { ModelInfo, Prediction, Prompt, Task } from "./types.js" */
/** @import { WorkerMessage } from "./decode_worker.js" */

const MAX_TIMINGS = 500;

export class DecoderClient {
  /**
   * Emits a description of the runtime and whether it is a slow fallback.
   * @type {Emitter<{text: string, isFallback: boolean}>}
   */
  runtimeChanged = new Emitter();
  /** Durations of the last predictions in milliseconds. @type {number[]} */
  timings = [];
  #model;
  /** @type {Worker | null} */
  #worker = null;
  /** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
  #requests = new Map();
  #numRequests = 0;
  /** @type {Task | null} */
  #task = null;
  #resize = new Resize(1, 1, 1);
  #ready = false;
  /** @type {Promise<void> | null} */
  #opening = null;

  /** @param {ModelInfo} model */
  constructor(model) {
    this.#model = model;
  }

  /** Whether the embedding of the current image is loaded. */
  get ready() {
    return this.#ready;
  }

  get usesWorker() {
    return this.#worker !== null;
  }

  /** Side of the logits. */
  get gridSize() {
    return this.#model.logits_size;
  }

  /** Side of the model frame. */
  get imageSize() {
    return this.#model.image_size;
  }

  get checkpoint() {
    return this.#model.checkpoint;
  }

  /** Start the worker, once; fall back to the server if it fails. */
  open() {
    this.#opening ??= this.#start();
    return this.#opening;
  }

  async #start() {
    if (!this.#model.decoder) return this.#useServer("this server has no decoder for browsers");
    try {
      this.#worker = new Worker(new URL("./decode_worker.js", import.meta.url), { type: "module" });
      this.#worker.onmessage = ({ data }) => this.#resolve(data);
      this.#worker.onerror = (event) => this.#fail(event.message || "the worker does not start");
      const { threads } = await this.#post({ kind: "open", url: this.#model.decoder });
      const text = `decoding in the browser, ${threads} ${threads === 1 ? "thread" : "threads"}`;
      this.runtimeChanged.emit({ text, isFallback: false });
    } catch (error) {
      this.#useServer(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * Load the embedding of a task's image; return false if another image was opened meanwhile.
   * @param {Task} task
   */
  async load(task) {
    this.#task = task;
    this.#ready = false;
    this.#resize = new Resize(task.height, task.width, this.#model.image_size);
    await this.open();
    const url = `/api/tasks/${task.id}/embedding?checkpoint=${this.#model.checkpoint}`;
    for (let wait = 150; ; wait = Math.min(1000, wait * 1.5)) {
      const response = await api.request("GET", url);
      if (this.#task !== task) return false;
      if (response.status === 200) {
        const shape = header(response, "X-Shape").split(",").map(Number);
        const values = fromHalf(await response.arrayBuffer());
        if (this.#worker) await this.#post({ kind: "image", values, shape }, [values.buffer]);
        break;
      }
      await sleep(wait);
    }
    this.#ready = this.#task === task;
    return this.#ready;
  }

  /**
   * Predict the masks of a prompt: three if `multimask`, else one.
   * @param {Prompt} prompt
   * @returns {Promise<Prediction>}
   */
  async decode({ points, box, mask, multimask }) {
    const started = performance.now();
    const rows = promptRows(points, box);
    const prediction = this.#worker
      ? await this.#decodeInWorker(box ? rows : [...rows, [0, 0, LABELS.PADDING]], mask, multimask)
      : await this.#decodeOnServer(rows, mask, multimask);
    this.timings.push(performance.now() - started);
    if (this.timings.length > MAX_TIMINGS) this.timings.shift();
    return prediction;
  }

  /**
   * @param {number[][]} rows
   * @param {Float32Array | null} mask
   * @param {boolean} multimask
   */
  async #decodeInWorker(rows, mask, multimask) {
    const side = this.#model.logits_size;
    const coords = new Float32Array(rows.flatMap(([x, y, label]) => (label < 0 ? [0, 0] : this.#resize.pointToModel(x, y))));
    const labels = new Float32Array(rows.map((row) => row[2]));
    const { scores, logits } = await this.#post({ kind: "decode", coords, labels, mask, side });
    const [from, to] = multimask ? [1, 4] : [0, 1]; // mask 0 is for unambiguous prompts
    const selected = logits.slice(from * side * side, to * side * side);
    return { scores: scores.slice(from, to), logits: selected, numMasks: to - from, gridSize: side };
  }

  /**
   * @param {number[][]} prompts
   * @param {Float32Array | null} mask
   * @param {boolean} multimask
   */
  async #decodeOnServer(prompts, mask, multimask) {
    const mask_logits = mask && base64(toHalf(mask));
    const body = { checkpoint: this.#model.checkpoint, prompts, multimask_output: multimask, mask_logits };
    for (;;) {
      const response = await api.request("POST", `/api/tasks/${this.#task?.id}/decode`, body);
      if (response.status === 202) {
        await sleep(300);
        continue;
      }
      const [numMasks, gridSize] = header(response, "X-Shape").split(",").map(Number);
      const scores = header(response, "X-Iou-Scores").split(",").map(Number);
      return { scores, logits: fromHalf(await response.arrayBuffer()), numMasks, gridSize };
    }
  }

  /** @param {string} reason */
  #useServer(reason) {
    this.#worker?.terminate();
    this.#worker = null;
    const text = `decoding on the server, each click takes longer: ${reason.slice(0, 160)}`;
    this.runtimeChanged.emit({ text, isFallback: true });
  }

  /**
   * Send a message to the worker and return its result.
   * @param {WorkerMessage} message
   * @param {Transferable[]} transfer
   * @returns {Promise<any>}
   */
  #post(message, transfer = []) {
    const id = ++this.#numRequests;
    return new Promise((resolve, reject) => {
      this.#requests.set(id, { resolve, reject });
      this.#worker?.postMessage({ id, ...message }, transfer);
    });
  }

  /** @param {{id: number, error?: string}} result */
  #resolve({ id, error, ...result }) {
    const request = this.#requests.get(id);
    this.#requests.delete(id);
    if (error) request?.reject(new Error(error));
    else request?.resolve(result);
  }

  /** @param {string} reason */
  #fail(reason) {
    const requests = [...this.#requests.values()];
    this.#requests.clear();
    for (const { reject } of requests) reject(new Error(reason));
    this.#useServer(reason);
  }
}
