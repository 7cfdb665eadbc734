// Annotating or reviewing. A reviewer reviews, except while they correct an image themselves.
import { Emitter } from "./emitter.js";

export class Mode {
  changed = new Emitter();
  #reviewing;

  /** @param {boolean} isReviewer */
  constructor(isReviewer) {
    this.isReviewer = isReviewer;
    this.#reviewing = isReviewer;
  }

  get reviewing() {
    return this.#reviewing;
  }

  /** @param {boolean} reviewing */
  setReviewing(reviewing) {
    if (reviewing === this.#reviewing) return;
    this.#reviewing = reviewing;
    this.changed.emit();
  }
}
