// How masks are displayed; kept in localStorage, except for `hidden`.
import { Emitter } from "./emitter.js";

const STORAGE_KEY = "sam-annotate looks";
/** @type {Record<string, string>} */
const NEXT_STYLE = { both: "fills", fills: "outlines", outlines: "both" };

/** @typedef {{opacity: number, style: string, hidden: boolean, preview: boolean}} DisplayValues */

export class DisplaySettings {
  changed = new Emitter();
  /** @type {DisplayValues} */
  #values = { opacity: 0.45, style: "both", hidden: false, preview: true };

  constructor() {
    this.#values = { ...this.#values, ...JSON.parse(localStorage.getItem(STORAGE_KEY) || "{}") };
  }

  get values() {
    return this.#values;
  }

  /** @param {Partial<DisplayValues>} change */
  set(change) {
    this.#values = { ...this.#values, ...change };
    const { opacity, style, preview } = this.#values;
    localStorage.setItem(STORAGE_KEY, JSON.stringify({ opacity, style, preview }));
    this.changed.emit();
  }

  nextStyle() {
    this.set({ style: NEXT_STYLE[this.#values.style] });
  }
}
