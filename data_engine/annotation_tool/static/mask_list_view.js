// The list of masks in the side panel.
import { $, textElement } from "./dom.js";
import { Emitter } from "./emitter.js";

/** @import { ListedMask } from "./types.js" */
/** @import { MaskList } from "./mask_list.js" */
/** @import { Mode } from "./mode.js" */

export class MaskListView {
  /** Emits a mask whose row was double-clicked, or entered by keyboard. @type {Emitter<ListedMask>} */
  editRequested = new Emitter();
  #masks;
  #mode;

  /**
   * @param {MaskList} masks
   * @param {Mode} mode
   */
  constructor(masks, mode) {
    this.#masks = masks;
    this.#mode = mode;
    masks.changed.subscribe(() => this.#render());
    masks.markChanged.subscribe(() => this.#highlight());
  }

  #render() {
    const { all, proposals } = this.#masks;
    const numProposed = proposals.length;
    $("count").textContent = numProposed ? `${all.length - numProposed}, ${numProposed} proposed` : String(all.length);
    $("proposals").hidden = !numProposed || this.#mode.reviewing;
    $("masks").replaceChildren(...all.map((mask) => this.#createRow(mask)).reverse());
  }

  #highlight() {
    for (const row of $("masks").children) {
      const isMarked = row instanceof HTMLElement && row.dataset.mask === this.#masks.marked?.mask;
      if (row.classList.toggle("marked", isMarked)) row.scrollIntoView({ block: "nearest" });
    }
  }

  /** @param {ListedMask} mask */
  #createRow(mask) {
    const row = document.createElement("li");
    row.tabIndex = 0;
    row.title = mask.name;
    row.dataset.mask = mask.mask;
    const chip = document.createElement("i");
    chip.style.background = `rgb(${mask.color})`;
    row.append(chip, String(mask.number + 1), textElement("span", mask.name, "name"), textElement("span", mask.origin, "origin"));
    row.addEventListener("mouseenter", () => this.#masks.mark(mask));
    row.addEventListener("mouseleave", () => this.#masks.mark(null));
    row.addEventListener("focus", () => this.#masks.mark(mask));
    row.addEventListener("dblclick", () => this.#requestEdit(mask));
    row.addEventListener("keydown", (event) => event.key === "Enter" && this.#requestEdit(mask));
    return row;
  }

  /** @param {ListedMask} mask */
  #requestEdit(mask) {
    if (!this.#mode.reviewing) this.editRequested.emit(mask);
  }
}
