// The panel beside the image: state of the current mask, choice among its candidate masks, enabled buttons.
import { $, enableAction, textElement } from "./dom.js";
import { MASK_SIZES } from "./prediction.js";

/** @import { DecoderClient } from "./decoder_client.js" */
/** @import { MaskController } from "./mask_controller.js" */
/** @import { MaskEditor } from "./mask_editor.js" */

/**
 * @param {number} number
 * @param {string} noun
 */
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export class SidePanel {
  #editor;
  #controller;
  #decoder;

  /**
   * @param {MaskEditor} editor
   * @param {MaskController} controller
   * @param {DecoderClient | null} decoder
   */
  constructor(editor, controller, decoder) {
    this.#editor = editor;
    this.#controller = controller;
    this.#decoder = decoder;
  }

  update() {
    this.#showChoices();
    this.#showState();
    enableAction("commit", this.#editor.bits !== null);
    enableAction("discard", !this.#editor.isEmpty);
    enableAction("undo", this.#controller.canUndo);
    enableAction("redo", this.#editor.canRedo);
  }

  clear() {
    $("mask-state").textContent = "";
  }

  #showChoices() {
    const { prediction, choice, painted } = this.#editor.state;
    if (!prediction || prediction.numMasks < 2 || painted) {
      $("choices").hidden = true;
      return;
    }
    $("choices").hidden = false;
    const choices = prediction.scores.map((score, n) => {
      return textElement("span", `${MASK_SIZES[n]} ${score.toFixed(2)}`, n === choice ? "chosen" : "");
    });
    $("choices").replaceChildren(...choices, textElement("kbd", "C"));
  }

  #showState() {
    const { editing, score, state, strokes } = this.#editor;
    const parts = [];
    if (editing) parts.push(`editing mask ${editing.number + 1}`);
    if (state.points.length) parts.push(plural(state.points.length, "point"));
    if (state.box) parts.push("box");
    if (strokes) parts.push(plural(strokes, "stroke"));
    if (score !== null) parts.push(`predicted IoU ${score.toFixed(2)}`);
    const idle = this.#decoder && !this.#decoder.ready ? "Computing the image embedding…" : "Click an object.";
    $("mask-state").textContent = parts.length ? parts.join(", ") : idle;
  }
}
