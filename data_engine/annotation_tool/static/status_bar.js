// Header, messages and hints of the page.
import { ApiError } from "./api.js";
import { $ } from "./dom.js";

const NOTE_MS = 4000;

export class StatusBar {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #noteTimeout;

  /**
   * Show a message; kind "note": for a few seconds.
   * @param {string} text
   * @param {"error" | "note" | "end"} kind
   */
  showMessage(text, kind = "error") {
    $("message").textContent = text;
    $("message").hidden = !text;
    $("message").className = kind;
    clearTimeout(this.#noteTimeout);
    if (kind === "note") this.#noteTimeout = setTimeout(() => this.clearMessage(), NOTE_MS);
  }

  /** @param {string} text */
  showNote(text) {
    this.showMessage(text, "note");
  }

  clearMessage() {
    this.showMessage("");
  }

  /** @param {unknown} error */
  showError(error) {
    if (!(error instanceof ApiError)) console.error(error);
    this.showMessage(error instanceof Error ? error.message : String(error));
  }

  /** @param {string} name */
  showUser(name) {
    $("user").textContent = name;
  }

  /**
   * @param {string} name
   * @param {string} note
   * @param {boolean} isSentBack
   */
  showImage(name, note, isSentBack) {
    $("image-name").textContent = name;
    $("image-note").textContent = $("image-note").title = note;
    $("image-note").classList.toggle("back", isSentBack);
  }

  /**
   * Show the number of tasks that ended, or of those to review.
   * @param {Record<string, number>} counts Tasks by state.
   * @param {boolean} isReviewer
   */
  showTaskCounts(counts, isReviewer) {
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    const ended = (counts.done ?? 0) + (counts.accepted ?? 0) + (counts.skipped ?? 0);
    $("queue").textContent = isReviewer ? `${counts.done ?? 0} to review` : `${ended} of ${total} done`;
  }

  /**
   * Show the state of the outbox: saved, saving or waiting.
   * @param {string} state
   * @param {number} numPending
   */
  showSaved(state, numPending) {
    const waiting = `server unreachable, ${numPending} stored locally`;
    $("saved").dataset.state = state;
    $("saved").textContent = state === "waiting" ? waiting : state === "saving" ? "saving…" : "saved";
  }

  /**
   * @param {string} text
   * @param {boolean} isFallback
   */
  showRuntime(text, isFallback = false) {
    $("runtime").textContent = text;
    $("runtime").classList.toggle("warning", isFallback);
  }

  /**
   * Show the work time on the current mask, with a hint when it exceeds the limit; null: hide it.
   * @param {number | null} seconds
   * @param {number} limit
   */
  showWorkTime(seconds, limit) {
    const isLong = seconds !== null && seconds > limit;
    $("timer").textContent = seconds === null ? "" : `${Math.floor(seconds)} s`;
    $("timer").classList.toggle("long", isLong);
    $("hint").hidden = !isLong;
    if (isLong)
      $("hint").textContent = `More than ${limit} s on this mask: if the remaining ones are as hard, go to the next image (D).`;
  }
}
