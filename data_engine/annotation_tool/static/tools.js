// The active tool, and brush strokes.
import { $, buttons, byId } from "./dom.js";
import { Emitter } from "./emitter.js";

/** @import { Point } from "./types.js" */
/** @import { MaskEditor } from "./mask_editor.js" */

const MAX_RADIUS = 400;

export class Tools {
  /** Emitted when another tool is selected. */
  selected = new Emitter();
  /** Emitted when the brush size changes. */
  radiusChanged = new Emitter();
  #editor;
  #current = "prompt";
  #radius = 12;
  /** @type {{last: Point, value: number} | null} */
  #stroke = null;

  /** @param {MaskEditor} editor */
  constructor(editor) {
    this.#editor = editor;
  }

  /** prompt, brush or eraser. */
  get current() {
    return this.#current;
  }

  get isBrush() {
    return this.#current !== "prompt";
  }

  /** Brush radius in image pixels. */
  get radius() {
    return this.#radius;
  }

  /** @param {string} tool */
  select(tool) {
    this.#current = tool;
    for (const button of buttons("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    $("canvas").classList.toggle("brushing", this.isBrush);
    this.selected.emit();
  }

  /** @param {number} radius */
  setRadius(radius) {
    this.#radius = Math.min(MAX_RADIUS, Math.max(1, radius));
    byId("brush", HTMLInputElement).value = String(this.#radius);
    this.radiusChanged.emit();
  }

  /**
   * Begin a stroke. inverted: the brush erases and the eraser paints.
   * @param {Point} point
   * @param {boolean} inverted
   */
  beginStroke(point, inverted) {
    this.#stroke = { last: point, value: (this.#current === "brush") !== inverted ? 1 : 0 };
    this.extendStroke(point);
  }

  /** @param {Point} point */
  extendStroke(point) {
    if (!this.#stroke) return;
    this.#editor.paint(this.#stroke.last, point, this.#radius, this.#stroke.value);
    this.#stroke.last = point;
  }

  endStroke() {
    if (!this.#stroke) return;
    this.#stroke = null;
    this.#editor.finishStroke();
  }
}
