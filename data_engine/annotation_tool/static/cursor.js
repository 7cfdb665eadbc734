// The position of the pointer on the image, or of the cross that the arrow keys move.
import { Emitter } from "./emitter.js";

/** @import { Point } from "./types.js" */

export class Cursor {
  /** Emitted when the cursor moves. */
  moved = new Emitter();
  /** @type {Point} */
  #position = { x: 0, y: 0 };
  #byKeyboard = false;

  get position() {
    return this.#position;
  }

  /** Whether the arrow keys moved it last. */
  get byKeyboard() {
    return this.#byKeyboard;
  }

  /**
   * Set the position; emits nothing.
   * @param {Point} position
   */
  reset(position) {
    this.#position = position;
    this.#byKeyboard = false;
  }

  /**
   * @param {Point} position
   * @param {boolean} byKeyboard
   */
  moveTo(position, byKeyboard = false) {
    this.#position = position;
    this.#byKeyboard = byKeyboard;
    this.moved.emit();
  }
}
