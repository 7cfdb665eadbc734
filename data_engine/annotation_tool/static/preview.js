// The preview: the prediction for a foreground point under the cursor.
import { Emitter } from "./emitter.js";
import { Layers, cropMask } from "./layers.js";
import { bestMask } from "./prediction.js";
import { Resize } from "./resample.js";

/** @import { Point, Prediction, Task } from "./types.js" */
/** @import { DecoderClient } from "./decoder_client.js" */
/** @import { DisplaySettings } from "./display_settings.js" */
/** @import { MaskEditor } from "./mask_editor.js" */
/** @import { Mode } from "./mode.js" */
/** @import { StatusBar } from "./status_bar.js" */
/** @import { Tools } from "./tools.js" */

const MAX_SIDE = 1024; // pixels
const COLOR = /** @type {[number, number, number]} */ ([255, 255, 255]);

/**
 * @typedef {object} PreviewParts
 * @property {MaskEditor} editor
 * @property {DecoderClient | null} decoder
 * @property {Tools} tools
 * @property {DisplaySettings} settings
 * @property {Mode} mode
 * @property {StatusBar} status
 */

export class Preview {
  /** Emitted when the preview is shown, changed or cleared. */
  changed = new Emitter();
  #parts;
  /** @type {Task | null} */
  #task = null;
  /** @type {Point | null} */
  #nextPoint = null;
  #busy = false;
  #visible = false;
  /** @type {Layers | null} */
  #layers = null;

  /** @param {PreviewParts} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /**
   * Start with another image, or none.
   * @param {Task | null} task
   */
  open(task) {
    this.#task = task;
    this.#nextPoint = this.#layers = null;
    this.#visible = false;
  }

  /** Whether a preview is being decoded. */
  get busy() {
    return this.#busy;
  }

  /** The drawn preview, null if none is shown. */
  get layers() {
    return this.#visible ? this.#layers : null;
  }

  /**
   * Update the preview after a movement of the cursor.
   * @param {Point} p
   * @param {boolean} isInside Whether the cursor is on the image.
   */
  update(p, isInside) {
    const { decoder, editor, mode, settings, tools } = this.#parts;
    const enabled = isInside && !mode.reviewing && !tools.isBrush && settings.values.preview && editor.isEmpty;
    if (enabled && decoder?.ready) this.#show(decoder, p);
    else this.clear();
  }

  clear() {
    this.#nextPoint = null;
    this.#visible = false;
    this.changed.emit();
  }

  /**
   * Decode previews one at a time; of the points that arrive meanwhile, the last one is next.
   * @param {DecoderClient} decoder
   * @param {Point} p
   */
  async #show(decoder, p) {
    this.#nextPoint = p;
    if (this.#busy) return;
    this.#busy = true;
    const { editor, status } = this.#parts;
    const task = this.#task;
    try {
      while (task && this.#nextPoint && this.#task === task && editor.isEmpty) {
        const point = { ...this.#nextPoint, label: 1 };
        this.#nextPoint = null;
        const prediction = await decoder.decode({ points: [point], box: null, mask: null, multimask: true });
        if (this.#task === task && editor.isEmpty) this.#draw(task, decoder.imageSize, prediction);
      }
    } catch (error) {
      status.showError(error);
    } finally {
      this.#busy = false;
    }
  }

  /**
   * @param {Task} task
   * @param {number} imageSize Side of the model frame.
   * @param {Prediction} prediction
   */
  #draw(task, imageSize, prediction) {
    const scale = Math.min(1, MAX_SIDE / Math.max(task.height, task.width));
    const [height, width] = [task.height, task.width].map((side) => Math.max(1, Math.round(side * scale)));
    const { logits, gridSize } = prediction;
    const bits = new Resize(height, width, imageSize).maskFromLogits(logits, gridSize, bestMask(prediction) * gridSize ** 2);
    this.#layers ??= new Layers(height, width);
    this.#layers.redrawSingle(cropMask(bits, height, width), COLOR);
    this.#visible = true;
    this.changed.emit();
  }
}
