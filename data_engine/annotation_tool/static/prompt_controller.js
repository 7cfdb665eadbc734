// Clicks and boxes become prompts for the decoder.
import { boxFromCorners, clamp } from "./dom.js";
import { Emitter } from "./emitter.js";

/** @import { Box, Point, PromptPoint, Task } from "./types.js" */
/** @import { DecoderClient } from "./decoder_client.js" */
/** @import { MaskEditor } from "./mask_editor.js" */
/** @import { Preview } from "./preview.js" */
/** @import { StatusBar } from "./status_bar.js" */

const NO_MODEL = "This server has no model: draw with the brush (2).";

/**
 * @typedef {object} PromptParts
 * @property {MaskEditor} editor
 * @property {DecoderClient | null} decoder
 * @property {Preview} preview
 * @property {StatusBar} status
 */

export class PromptController {
  /** Emitted when a box or point that is being dragged changes. */
  changed = new Emitter();
  #parts;
  /** @type {Task | null} */
  #task = null;
  /** @type {Promise<void> | null} */
  #decoding = null;
  #version = 0;
  /** @type {Box | null} */
  #draggedBox = null;
  /** @type {Point | null} */
  #firstCorner = null;
  /** @type {{from: PromptPoint, to: PromptPoint} | null} */
  #draggedPoint = null;
  /** @type {PromptPoint | null} */
  #hoveredPoint = null;

  /** @param {PromptParts} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /**
   * Start with another image, or none.
   * @param {Task | null} task
   */
  open(task) {
    this.#task = task;
    this.#version++;
    this.#draggedBox = this.#draggedPoint = this.#hoveredPoint = this.#firstCorner = null;
  }

  /** Whether a prompt is being decoded. */
  get busy() {
    return this.#decoding !== null;
  }

  get hoveredPoint() {
    return this.#hoveredPoint;
  }

  /** The points with the one that is being dragged at its new position. */
  get points() {
    const { points } = this.#parts.editor.state;
    const dragged = this.#draggedPoint;
    return dragged ? points.map((point) => (point === dragged.from ? dragged.to : point)) : points;
  }

  /** The box that is being dragged, else that of the prompt. */
  get box() {
    return this.#draggedBox ?? this.#parts.editor.state.box;
  }

  /** @param {Point} p */
  isInside(p) {
    return this.#task !== null && p.x >= 0 && p.y >= 0 && p.x < this.#task.width && p.y < this.#task.height;
  }

  /**
   * Return the prompt point within `radius` of p, null if there is none.
   * @param {Point} p
   * @param {number} radius
   */
  pointNear(p, radius) {
    return this.#parts.editor.state.points.find((point) => Math.hypot(point.x - p.x, point.y - p.y) <= radius) ?? null;
  }

  /**
   * Add a point; a point outside the image is ignored.
   * @param {Point} p
   * @param {number} label
   */
  addPoint(p, label) {
    const { decoder, editor, status } = this.#parts;
    if (!this.isInside(p)) return;
    if (!decoder) return status.showNote(NO_MODEL);
    if (editor.isEmpty && !label) return status.showNote("Begin with a foreground point (left click) or a box.");
    editor.addPoint({ ...this.#clamped(p), label }, decoder.gridSize);
    this.decode();
  }

  /**
   * Set the box between two corners; a box smaller than a pixel is ignored.
   * @param {Point} a
   * @param {Point} b
   */
  setBox(a, b) {
    this.#draggedBox = null;
    const { decoder, status } = this.#parts;
    if (!decoder) return status.showNote(NO_MODEL);
    const box = boxFromCorners(this.#clamped(a), this.#clamped(b));
    if (box[2] - box[0] < 1 || box[3] - box[1] < 1) return this.changed.emit();
    this.#replace({ box });
  }

  /**
   * Show a box while it is dragged.
   * @param {Point} a
   * @param {Point} b
   */
  dragBox(a, b) {
    this.#draggedBox = boxFromCorners(this.#clamped(a), this.#clamped(b));
    this.changed.emit();
  }

  /**
   * Set the first corner of a box at the cursor, then the other.
   * @param {Point} p
   */
  setCorner(p) {
    if (!this.#firstCorner) this.#firstCorner = { ...p };
    else {
      const first = this.#firstCorner;
      this.#firstCorner = null;
      this.setBox(first, p);
    }
  }

  /**
   * Follow the cursor with the box whose first corner is set.
   * @param {Point} p
   */
  followCursor(p) {
    if (this.#firstCorner) this.#draggedBox = boxFromCorners(this.#firstCorner, p);
  }

  /**
   * Show a point at another position while it is dragged.
   * @param {PromptPoint} point
   * @param {Point} p
   */
  dragPoint(point, p) {
    this.#draggedPoint = { from: this.#draggedPoint?.from ?? point, to: { ...point, ...this.#clamped(p) } };
    this.changed.emit();
  }

  dropPoint() {
    if (!this.#draggedPoint) return;
    const { from, to } = this.#draggedPoint;
    this.#draggedPoint = null;
    this.#replace({ points: this.#parts.editor.state.points.map((point) => (point === from ? to : point)) });
  }

  /** @param {PromptPoint} point */
  deletePoint(point) {
    this.#replace({ points: this.#parts.editor.state.points.filter((other) => other !== point) });
  }

  cancelDrag() {
    this.#draggedBox = this.#draggedPoint = null;
    this.changed.emit();
  }

  /** @param {Point} p */
  #clamped(p) {
    return { x: clamp(p.x, this.#task?.width ?? 0), y: clamp(p.y, this.#task?.height ?? 0) };
  }

  /** @param {{points?: PromptPoint[], box?: Box}} change */
  #replace(change) {
    const { editor, decoder } = this.#parts;
    editor.replacePrompts(change, decoder?.gridSize ?? 0);
    if (editor.hasPrompts || editor.editing) this.decode();
    else this.#parts.preview.clear();
  }

  /** Decode the current prompt; only the prediction of the newest prompt counts. */
  decode() {
    const decoding = this.#decode().finally(() => {
      if (this.#decoding === decoding) this.#decoding = null;
    });
    this.#decoding = decoding;
  }

  /** Ignore the prediction that is being decoded. */
  invalidate() {
    this.#version++;
  }

  /** Resolve when no prompt is being decoded. */
  async settled() {
    while (this.#decoding) await this.#decoding;
  }

  async #decode() {
    const { editor, decoder, preview, status } = this.#parts;
    preview.clear();
    if (!decoder?.ready) return;
    const version = ++this.#version;
    const state = editor.state;
    const { points, box, base } = state;
    if (!editor.hasPrompts) return;
    try {
      const prediction = await decoder.decode({ points, box, mask: base, multimask: editor.isAmbiguous });
      if (version === this.#version && editor.state === state) editor.setPrediction(prediction);
    } catch (error) {
      status.showError(error);
    }
  }

  /**
   * Highlight the point near the cursor.
   * @param {Point} p
   * @param {number} radius
   */
  hover(p, radius) {
    this.#hoveredPoint = this.pointNear(p, radius);
  }
}
