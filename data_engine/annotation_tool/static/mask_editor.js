// The object that is being made: prompts, the decoder's answers, strokes; a snapshot a step, so that each can be undone.
import { area, decode as decodeRle, encode } from "./rle.js";
import { stability } from "./resample.js";

const MOST_STEPS = 200;
export const SIZES = ["part", "object", "whole"]; // what masks 1 to 3 tend to be, smallest first

export class Piece {
  constructor(height, width, resize) {
    Object.assign(this, { height, width, resize });
    this.clear();
  }

  clear() {
    this.state = { points: [], box: null, base: null, answer: null, choice: 0, counts: null, painted: false };
    this.bits = null;
    this.undone = [];
    this.steps = [];
    this.clicks = 0;
    this.strokes = 0;
    this.editing = null;
  }

  get empty() {
    return !this.bits && !this.state.points.length && !this.state.box;
  }

  get several() {
    const { points, box, base } = this.state;
    return points.length === 1 && !box && !base;
  }

  get score() {
    const { answer, choice, painted } = this.state;
    return answer && !painted ? answer.scores[choice] : null;
  }

  // A mask that is there already: what follows changes it.
  edit(mask) {
    this.clear();
    this.editing = mask;
    this.bits = decodeRle(mask.rle.counts, this.height, this.width);
    this.state = { ...this.state, counts: mask.rle.counts, painted: true };
  }

  step(change) {
    this.steps.push(this.state);
    if (this.steps.length > MOST_STEPS) this.steps.shift();
    this.undone = [];
    this.state = { ...this.state, ...change };
  }

  undo() {
    if (!this.steps.length) return false;
    this.undone.push(this.state);
    this.become(this.steps.pop());
    return true;
  }

  redo() {
    if (!this.undone.length) return false;
    this.steps.push(this.state);
    this.become(this.undone.pop());
    return true;
  }

  become(state) {
    this.state = state;
    if (state.counts) this.bits = decodeRle(state.counts, this.height, this.width);
    else if (state.answer) this.bits = this.maskOf(state.answer, state.choice);
    else this.bits = null;
  }

  // What the decoder is asked after a new click: the last answer goes with it, or, after strokes, the mask as it is now.
  feedback(grid) {
    const { answer, choice, painted, base } = this.state;
    if (painted && this.bits) return grid ? this.resize.logitsOf(this.bits, grid) : null;
    if (!answer) return base;
    const length = answer.grid * answer.grid;
    return answer.logits.slice(choice * length, (choice + 1) * length);
  }

  addPoint(point, grid) {
    this.clicks++;
    this.step({ points: [...this.state.points, point], base: this.feedback(grid), painted: false });
  }

  // Points that moved or went, or another box: asked anew, without answers to what is not so any more.
  replace(change, grid) {
    this.clicks++;
    const before = this.editing && grid ? decodeRle(this.editing.rle.counts, this.height, this.width) : null;
    this.step({ ...change, base: before && this.resize.logitsOf(before, grid), painted: false });
  }

  answered(answer) {
    const best = answer.scores.indexOf(Math.max(...answer.scores));
    this.state = { ...this.state, answer: ordered(answer), choice: 0, counts: null };
    if (answer.num > 1) this.state.choice = this.state.answer.order.indexOf(best);
    this.bits = this.maskOf(this.state.answer, this.state.choice);
  }

  cycle(by) {
    const { answer, choice } = this.state;
    if (!answer || answer.num < 2 || this.state.painted) return false;
    this.step({ choice: (choice + by + answer.num) % answer.num });
    this.bits = this.maskOf(answer, this.state.choice);
    return true;
  }

  maskOf(answer, choice) {
    return this.resize.maskOf(answer.logits, answer.grid, choice * answer.grid * answer.grid);
  }

  // A dab or a stroke from a to b, in image pixels.
  paint(a, b, radius, value) {
    this.bits ??= new Uint8Array(this.height * this.width);
    const { height, width, bits } = this;
    const [left, right] = [Math.min(a.x, b.x) - radius, Math.max(a.x, b.x) + radius];
    const [top, bottom] = [Math.min(a.y, b.y) - radius, Math.max(a.y, b.y) + radius];
    const [dx, dy] = [b.x - a.x, b.y - a.y];
    const length = dx * dx + dy * dy || 1;
    for (let y = Math.max(0, Math.floor(top)); y < Math.min(height, bottom); y++) {
      for (let x = Math.max(0, Math.floor(left)); x < Math.min(width, right); x++) {
        const [px, py] = [x + 0.5 - a.x, y + 0.5 - a.y];
        const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) bits[y * width + x] = value;
      }
    }
  }

  painted() {
    this.strokes++;
    if (!area(this.bits)) this.bits = null;
    this.step({ counts: this.bits && encode(this.bits, this.height, this.width), painted: true });
  }

  // The commit's part about the mask; null when there is nothing to commit.
  work(checkpoint) {
    if (!this.bits || !area(this.bits)) return null;
    const { points, box, answer, choice } = this.state;
    const counts = encode(this.bits, this.height, this.width);
    const byModel = answer && !this.state.painted;
    const clip = (value, most) => Math.min(Math.max(value, 0), most);
    const prompts = points.map(({ x, y, label }) => [x, y, label]);
    if (box) prompts.push([box[0], box[1], 2], [box[2], box[3], 3]);
    let origin = this.strokes ? (prompts.length ? "edited" : "drawn") : "clicked"; // touched up, by hand, by the model alone
    if (this.editing) origin = originOf(this.editing, counts, this.strokes);
    return {
      rle: { size: [this.height, this.width], counts },
      origin,
      predicted_iou: byModel ? answer.scores[choice] : 1,
      stability_score: byModel ? stability(answer.logits, choice * answer.grid ** 2, answer.grid ** 2) : 1,
      prompts: prompts.map(([x, y, label]) => [clip(x, this.width), clip(y, this.height), label]),
      clicks: this.clicks,
      strokes: this.strokes,
      checkpoint: this.clicks ? checkpoint : "",
    };
  }

  // What is written down at each step, for a page that is loaded again.
  draft() {
    const { points, box, painted } = this.state;
    const counts = this.bits && encode(this.bits, this.height, this.width);
    return { points, box, painted, counts, clicks: this.clicks, strokes: this.strokes, editing: this.editing?.mask ?? null };
  }

  restore(draft, editing) {
    this.clear();
    Object.assign(this, { clicks: draft.clicks, strokes: draft.strokes, editing });
    this.bits = draft.counts && decodeRle(draft.counts, this.height, this.width);
    this.state = { ...this.state, points: draft.points, box: draft.box, counts: draft.counts, painted: true };
  }
}

// Of a mask that was there: what was proposed, or made by the model and then by hand, is edited.
function originOf(before, counts, strokes) {
  if (before.proposed || ["proposed", "accepted", "edited"].includes(before.origin)) {
    return before.origin === "proposed" && counts === before.rle.counts ? "accepted" : "edited";
  }
  return before.origin === "clicked" && strokes ? "edited" : before.origin;
}

// Smallest mask first, so that the key goes from part to whole.
function ordered(answer) {
  if (answer.num < 2) return { ...answer, order: [0] };
  const length = answer.grid ** 2;
  const areas = Array.from({ length: answer.num }, (_, n) => {
    let sum = 0;
    for (let i = n * length; i < (n + 1) * length; i++) if (answer.logits[i] > 0) sum++;
    return sum;
  });
  const order = areas.map((_, n) => n).sort((a, b) => areas[a] - areas[b]);
  const logits = new Float32Array(answer.logits.length);
  order.forEach((from, to) => logits.set(answer.logits.subarray(from * length, (from + 1) * length), to * length));
  return { ...answer, logits, scores: order.map((n) => answer.scores[n]), order };
}
