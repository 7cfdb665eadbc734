// Answers to prompts: from the worker, or from the server where the browser cannot (and the page says so).
import { api, ApiError } from "./api.js";
import { Resize, fromHalf, toHalf } from "./resample.js";

const POINT = { PADDING: -1, BOX_TOP_LEFT: 2, BOX_BOTTOM_RIGHT: 3 };

export class Decoder {
  constructor(model, onNote) {
    this.model = model;
    this.onNote = onNote;
    this.worker = null;
    this.waiting = new Map();
    this.number = 0;
    this.task = null;
    this.ready = false;
    this.milliseconds = [];
  }

  async open() {
    if (!this.model.decoder) return this.useServer("this server has no decoder for browsers");
    try {
      this.worker = new Worker(new URL("./decode_worker.js", import.meta.url), { type: "module" });
      this.worker.onmessage = ({ data }) => this.answered(data);
      this.worker.onerror = (event) => this.failed(event.message || "the worker does not start");
      const { threads } = await this.ask({ kind: "open", url: this.model.decoder });
      this.onNote(`decoding in the browser, ${threads} ${threads === 1 ? "thread" : "threads"}`, false);
    } catch (error) {
      this.useServer(error.message);
    }
  }

  useServer(reason) {
    this.worker?.terminate();
    this.worker = null;
    this.onNote(`decoding on the server, each click takes longer: ${reason.slice(0, 160)}`, true);
  }

  ask(message, transfer = []) {
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, ...message }, transfer);
    });
  }

  answered({ id, error, ...answer }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(answer);
  }

  failed(reason) {
    const left = [...this.waiting.values()];
    this.waiting.clear();
    left.forEach(({ reject }) => reject(new Error(reason)));
    this.useServer(reason);
  }

  // Wait for the image's embedding; false when another image came meanwhile.
  async load(task, onWait) {
    this.task = task;
    this.ready = false;
    this.resize = new Resize(task.height, task.width, this.model.image_size);
    const url = `/api/tasks/${task.id}/embedding?checkpoint=${this.model.checkpoint}`;
    for (let wait = 150; ; wait = Math.min(1000, wait * 1.5)) {
      const answer = await api.raw("GET", url);
      if (this.task !== task) return false;
      if (answer.status === 200) {
        const shape = answer.headers.get("X-Shape").split(",").map(Number);
        const values = fromHalf(await answer.arrayBuffer());
        if (this.worker) await this.ask({ kind: "image", values, shape }, [values.buffer]);
        break;
      }
      onWait();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
    this.ready = this.task === task;
    return this.ready;
  }

  // points: {x, y, label}; box: [x0, y0, x1, y1] or null; mask: logits or null. -> {scores, logits, num, grid}
  async decode({ points, box, mask, several }) {
    const began = performance.now();
    const prompts = points.map(({ x, y, label }) => [x, y, label]);
    if (box) prompts.push([box[0], box[1], POINT.BOX_TOP_LEFT], [box[2], box[3], POINT.BOX_BOTTOM_RIGHT]);
    const answer = this.worker ? await this.here(prompts, box, mask, several) : await this.there(prompts, mask, several);
    this.milliseconds.push(performance.now() - began);
    if (this.milliseconds.length > 500) this.milliseconds.shift();
    return answer;
  }

  async here(prompts, box, mask, several) {
    const side = this.model.logits_size;
    const all = box ? prompts : [...prompts, [0, 0, POINT.PADDING]];
    const coords = new Float32Array(all.flatMap(([x, y, label]) => (label < 0 ? [0, 0] : this.resize.pointToModel(x, y))));
    const labels = new Float32Array(all.map((prompt) => prompt[2]));
    const { scores, logits } = await this.ask({ kind: "decode", coords, labels, mask, side });
    const [from, to] = several ? [1, 4] : [0, 1]; // mask 0 is for prompts that are not ambiguous
    return { scores: scores.slice(from, to), logits: logits.slice(from * side * side, to * side * side), num: to - from, grid: side };
  }

  async there(prompts, mask, several) {
    const body = { checkpoint: this.model.checkpoint, prompts, multimask_output: several, mask_logits: mask && base64(toHalf(mask)) };
    for (;;) {
      const answer = await api.raw("POST", `/api/tasks/${this.task.id}/decode`, body);
      if (answer.status === 202) {
        await new Promise((resolve) => setTimeout(resolve, 300));
        continue;
      }
      const [num, grid] = answer.headers.get("X-Shape").split(",").map(Number);
      const scores = answer.headers.get("X-Iou-Scores").split(",").map(Number);
      return { scores, logits: fromHalf(await answer.arrayBuffer()), num, grid };
    }
  }
}

function base64(halves) {
  const bytes = new Uint8Array(halves.buffer);
  let letters = "";
  for (let i = 0; i < bytes.length; i += 8192) letters += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(letters);
}

export { ApiError };
