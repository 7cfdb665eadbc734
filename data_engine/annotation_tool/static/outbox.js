// Commits that the server has not confirmed yet.
import { ApiError, api } from "./api.js";
import { sleep } from "./dom.js";
import { Emitter } from "./emitter.js";

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 10000;

/** @typedef {{task: number, kind: string, mask: string} & Record<string, unknown>} CommitMessage */

/**
 * Sends commits in order, each until the server confirms it. They are kept in localStorage meanwhile, so none is lost when the
 * page is closed or the server is down; ids make a repeated commit harmless.
 */
export class Outbox {
  /**
   * Emits the state, "saving", "waiting" or "saved", and the number of unconfirmed commits.
   * @type {Emitter<{state: string, numPending: number}>}
   */
  changed = new Emitter();
  /**
   * Emits a commit that the server rejected (4xx).
   * @type {Emitter<{message: CommitMessage, error: ApiError}>}
   */
  rejected = new Emitter();
  /** @type {{id: string, message: CommitMessage}[]} */
  #pending;
  /** @type {Promise<void> | null} */
  #sending = null;
  #storageKey;

  /** @param {string} annotator */
  constructor(annotator) {
    this.#storageKey = `sam-annotate outbox ${annotator}`;
    this.#pending = JSON.parse(localStorage.getItem(this.#storageKey) || "[]");
  }

  get length() {
    return this.#pending.length;
  }

  /** @param {CommitMessage} message */
  put(message) {
    this.#pending.push({ id: crypto.randomUUID(), message });
    this.#store();
    this.flush();
  }

  /** Resolve when every commit is confirmed or rejected. Only one sender runs at a time. */
  flush() {
    this.#sending ??= this.#send().finally(() => {
      this.#sending = null;
    });
    return this.#sending;
  }

  #store() {
    localStorage.setItem(this.#storageKey, JSON.stringify(this.#pending));
  }

  async #send() {
    for (let wait = FIRST_RETRY_MS; this.#pending.length; ) {
      const { id, message } = this.#pending[0];
      this.changed.emit({ state: "saving", numPending: this.#pending.length });
      try {
        await api.request("PUT", `/api/commits/${id}`, message);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 0 || error.status >= 500) {
          this.changed.emit({ state: "waiting", numPending: this.#pending.length });
          await sleep(wait);
          wait = Math.min(MAX_RETRY_MS, wait * 2);
          continue;
        }
        if (error.status === 401) return;
        this.rejected.emit({ message, error }); // 4xx: a retry would fail as well
      }
      wait = FIRST_RETRY_MS;
      this.#pending.shift();
      this.#store();
    }
    this.changed.emit({ state: "saved", numPending: 0 });
  }
}
