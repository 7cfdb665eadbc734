// The mask that is being made: prompts, predictions and brush strokes, with one snapshot per step for undo and redo.
import { clamp } from "./dom.js";
import { emptyState, originAfterEdit } from "./edit_state.js";
import { Emitter } from "./emitter.js";
import { paintLine } from "./paint.js";
import { bestMask, sortByArea } from "./prediction.js";
import { promptRows } from "./prompt_rows.js";
import { Resize } from "./resample.js";
import { area, decode as decodeRle, encode } from "./rle.js";

/** @import { EditState } from "./edit_state.js" */
/** @import { Box, Draft, ListedMask, MaskCommit, Point, Prediction, PromptPoint } from "./types.js" */

const MAX_STEPS = 200;

export class MaskEditor {
  /** Emitted after each step: the mask or its prompts changed. */
  changed = new Emitter();
  /** Emitted when pixels change during a stroke. */
  pixelsChanged = new Emitter();
  #height = 0;
  #width = 0;
  #resize = new Resize(1, 1, 1);
  #state = emptyState();
  /** @type {Uint8Array | null} */
  #bits = null;
  /** @type {EditState[]} */
  #undoStack = [];
  /** @type {EditState[]} */
  #redoStack = [];
  #clicks = 0;
  #strokes = 0;
  /** @type {ListedMask | null} */
  #editing = null;

  /**
   * Start with an empty mask for another image. Emits nothing.
   * @param {number} height
   * @param {number} width
   * @param {Resize} resize
   */
  open(height, width, resize) {
    [this.#height, this.#width, this.#resize] = [height, width, resize];
    this.#reset();
  }

  #reset() {
    this.#state = emptyState();
    this.#bits = null;
    this.#undoStack = [];
    this.#redoStack = [];
    this.#clicks = this.#strokes = 0;
    this.#editing = null;
  }

  /** The current step; replaced, not changed, by each operation. */
  get state() {
    return this.#state;
  }

  /** The current mask, height x width, null if there is none. */
  get bits() {
    return this.#bits;
  }

  get size() {
    return { height: this.#height, width: this.#width };
  }

  /** The listed mask that is edited, null for a new mask. */
  get editing() {
    return this.#editing;
  }

  get strokes() {
    return this.#strokes;
  }

  get isEmpty() {
    return !this.#bits && !this.hasPrompts;
  }

  get hasPrompts() {
    return this.#state.points.length > 0 || this.#state.box !== null;
  }

  /** Whether the prompt is ambiguous: a single point. */
  get isAmbiguous() {
    const { points, box, base } = this.#state;
    return points.length === 1 && !box && !base;
  }

  /** Predicted IoU of the mask, null if it is not a prediction. */
  get score() {
    const { prediction, choice, painted } = this.#state;
    return prediction && !painted ? prediction.scores[choice] : null;
  }

  get canUndo() {
    return this.#undoStack.length > 0;
  }

  get canRedo() {
    return this.#redoStack.length > 0;
  }

  clear() {
    this.#reset();
    this.changed.emit();
  }

  /**
   * Edit a listed mask.
   * @param {ListedMask} mask
   */
  editMask(mask) {
    this.#reset();
    this.#editing = mask;
    this.#bits = decodeRle(mask.rle.counts, this.#height, this.#width);
    this.#state = { ...this.#state, counts: mask.rle.counts, painted: true };
    this.changed.emit();
  }

  /** Undo a step; return false if there is none. */
  undo() {
    const previous = this.#undoStack.pop();
    if (!previous) return false;
    this.#redoStack.push(this.#state);
    this.#restoreState(previous);
    return true;
  }

  /** Redo a step; return false if there is none. */
  redo() {
    const next = this.#redoStack.pop();
    if (!next) return false;
    this.#undoStack.push(this.#state);
    this.#restoreState(next);
    return true;
  }

  /** @param {EditState} state */
  #restoreState(state) {
    this.#state = state;
    if (state.counts) this.#bits = decodeRle(state.counts, this.#height, this.#width);
    else if (state.prediction) this.#bits = this.#predictedMask(state.prediction, state.choice);
    else this.#bits = null;
    this.changed.emit();
  }

  /** @param {Partial<EditState>} change */
  #step(change) {
    this.#undoStack.push(this.#state);
    if (this.#undoStack.length > MAX_STEPS) this.#undoStack.shift();
    this.#redoStack = [];
    this.#state = { ...this.#state, ...change };
  }

  /**
   * Add a point. The next prediction gets the last one as mask prompt or, after strokes, the current mask.
   * @param {PromptPoint} point
   * @param {number} gridSize Side of the mask prompt, 0 without a decoder.
   */
  addPoint(point, gridSize) {
    this.#clicks++;
    this.#step({ points: [...this.#state.points, point], base: this.#maskPrompt(gridSize), painted: false });
    this.changed.emit();
  }

  /**
   * Move or delete points, or set the box. The next prediction gets no earlier prediction as mask prompt.
   * @param {{points?: PromptPoint[], box?: Box}} change
   * @param {number} gridSize Side of the mask prompt, 0 without a decoder.
   */
  replacePrompts(change, gridSize) {
    this.#clicks++;
    const edited = this.#editing && gridSize ? decodeRle(this.#editing.rle.counts, this.#height, this.#width) : null;
    this.#step({ ...change, base: edited && this.#resize.logitsFromMask(edited, gridSize), painted: false });
    if (!this.hasPrompts && !this.#editing) {
      this.#bits = null;
      this.#state = { ...this.#state, prediction: null, counts: null };
    }
    this.changed.emit();
  }

  /** @param {number} gridSize */
  #maskPrompt(gridSize) {
    const { prediction, choice, painted, base } = this.#state;
    if (painted && this.#bits) return gridSize ? this.#resize.logitsFromMask(this.#bits, gridSize) : null;
    if (!prediction) return base;
    const length = prediction.gridSize * prediction.gridSize;
    return prediction.logits.slice(choice * length, (choice + 1) * length);
  }

  /**
   * Set the prediction for the current prompts and choose its best mask.
   * @param {Prediction} prediction
   */
  setPrediction(prediction) {
    const sorted = sortByArea(prediction);
    const choice = prediction.numMasks > 1 ? sorted.order.indexOf(bestMask(prediction)) : 0;
    this.#state = { ...this.#state, prediction: sorted, choice, counts: null };
    this.#bits = this.#predictedMask(sorted, choice);
    this.changed.emit();
  }

  /**
   * Choose the next mask of the prediction, or the previous one (by = -1).
   * @param {number} by
   */
  cycle(by) {
    const { prediction, choice } = this.#state;
    if (!prediction || prediction.numMasks < 2 || this.#state.painted) return;
    this.#step({ choice: (choice + by + prediction.numMasks) % prediction.numMasks });
    this.#bits = this.#predictedMask(prediction, this.#state.choice);
    this.changed.emit();
  }

  /**
   * @param {Prediction} prediction
   * @param {number} choice
   */
  #predictedMask({ logits, gridSize }, choice) {
    return this.#resize.maskFromLogits(logits, gridSize, choice * gridSize ** 2);
  }

  /**
   * Set all pixels within `radius` of the line from a to b to `value`.
   * @param {Point} a
   * @param {Point} b
   * @param {number} radius
   * @param {number} value
   */
  paint(a, b, radius, value) {
    this.#bits ??= new Uint8Array(this.#height * this.#width);
    paintLine(this.#bits, this.size, a, b, radius, value);
    this.pixelsChanged.emit();
  }

  /** End a stroke: it becomes one step. */
  finishStroke() {
    this.#strokes++;
    if (this.#bits && !area(this.#bits)) this.#bits = null;
    this.#step({ counts: this.#bits && encode(this.#bits, this.#height, this.#width), painted: true });
    this.changed.emit();
  }

  /**
   * Return the mask as a commit states it; null if there is no mask.
   * @param {string} checkpoint
   * @returns {MaskCommit | null}
   */
  toCommit(checkpoint) {
    if (!this.#bits || !area(this.#bits)) return null;
    const { points, box } = this.#state;
    const counts = encode(this.#bits, this.#height, this.#width);
    const prompts = promptRows(points, box);
    let origin = this.#strokes ? (prompts.length ? "edited" : "drawn") : "clicked";
    if (this.#editing) origin = originAfterEdit(this.#editing, counts, this.#strokes);
    return {
      rle: { size: [this.#height, this.#width], counts },
      origin,
      predicted_iou: this.score ?? 1,
      stability_score: this.#stabilityScore(),
      prompts: prompts.map(([x, y, label]) => [clamp(x, this.#width), clamp(y, this.#height), label]),
      clicks: this.#clicks,
      strokes: this.#strokes,
      checkpoint: this.#clicks ? checkpoint : "",
    };
  }

  /** Stability score of the prediction, 1 for a mask that is not one. */
  #stabilityScore() {
    const { prediction, choice, painted } = this.#state;
    if (!prediction || painted) return 1;
    return this.#resize.stabilityScore(prediction.logits, prediction.gridSize, choice * prediction.gridSize ** 2);
  }

  /** Return the unfinished mask for localStorage. */
  toDraft() {
    const { points, box, painted } = this.#state;
    const counts = this.#bits && encode(this.#bits, this.#height, this.#width);
    return { points, box, painted, counts, clicks: this.#clicks, strokes: this.#strokes, editing: this.#editing?.mask ?? null };
  }

  /**
   * Continue with an unfinished mask. Emits nothing.
   * @param {Draft} draft
   * @param {ListedMask | null} editing
   */
  restore(draft, editing) {
    this.#reset();
    this.#clicks = draft.clicks;
    this.#strokes = draft.strokes;
    this.#editing = editing;
    this.#bits = draft.counts ? decodeRle(draft.counts, this.#height, this.#width) : null;
    this.#state = { ...this.#state, points: draft.points, box: draft.box, counts: draft.counts, painted: true };
  }
}
