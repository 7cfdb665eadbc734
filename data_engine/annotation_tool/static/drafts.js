// The unfinished mask in localStorage: a page that is reloaded continues with it.

/** @import { Draft } from "./types.js" */

export class DraftStore {
  #storageKey;

  /** @param {string} annotator */
  constructor(annotator) {
    this.#storageKey = `sam-annotate draft ${annotator}`;
  }

  /** @param {Draft} draft */
  save(draft) {
    localStorage.setItem(this.#storageKey, JSON.stringify(draft));
  }

  remove() {
    localStorage.removeItem(this.#storageKey);
  }

  /**
   * Return the draft of a task, null if there is none.
   * @param {number} task
   * @returns {Draft | null}
   */
  load(task) {
    const draft = JSON.parse(localStorage.getItem(this.#storageKey) || "null");
    return draft?.task === task ? draft : null;
  }
}
