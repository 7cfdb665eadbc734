// The masks of the open image.
import { Emitter } from "./emitter.js";
import { Layers, colorOf, cropContains, cropMask } from "./layers.js";
import { area, decode as decodeRle } from "./rle.js";

/** @import { ListedMask, MaskJson, Point } from "./types.js" */

const MARK_COLOR = /** @type {[number, number, number]} */ ([255, 255, 255]);
const MARK_OUTLINE_SCALE = 3; // proposed masks are nearly white, too

export class MaskList {
  /** Emitted when masks are added, removed or changed. */
  changed = new Emitter();
  /** Emitted when another mask is marked, or none. */
  markChanged = new Emitter();
  /** @type {ListedMask[]} */
  #masks = [];
  #height = 1;
  #width = 1;
  #layers = new Layers(1, 1);
  /** @type {ListedMask | null} */
  #marked = null;
  /** @type {OffscreenCanvas | null} */
  #markedOutline = null;
  /** Id of the mask that is not drawn because it is edited. @type {string | null} */
  #hidden = null;

  /**
   * Replace the masks by those of another image.
   * @param {number} height
   * @param {number} width
   * @param {MaskJson[]} masks
   */
  open(height, width, masks) {
    this.#height = height;
    this.#width = width;
    this.#layers = new Layers(height, width);
    this.#hidden = null;
    this.#masks = masks.map((mask) => this.createMask(mask));
    this.#update();
  }

  /** By number. */
  get all() {
    return this.#masks;
  }

  get layers() {
    return this.#layers;
  }

  get marked() {
    return this.#marked;
  }

  get markedOutline() {
    return this.#markedOutline;
  }

  get proposals() {
    return this.#masks.filter((mask) => mask.origin === "proposed");
  }

  /** Number of the next new mask. */
  get nextNumber() {
    return 1 + Math.max(-1, ...this.#masks.map((mask) => mask.number));
  }

  /**
   * Return a mask with what is needed to draw it.
   * @param {MaskJson & {wasProposed?: boolean}} mask
   * @returns {ListedMask}
   */
  createMask(mask) {
    const bits = decodeRle(mask.rle.counts, this.#height, this.#width);
    const crop = cropMask(bits, this.#height, this.#width);
    return { ...mask, wasProposed: mask.wasProposed ?? false, crop, color: colorOf(mask.number, mask.origin) };
  }

  /** @param {string} id */
  find(id) {
    return this.#masks.find((mask) => mask.mask === id) ?? null;
  }

  /**
   * Add masks; a mask with the same id is replaced.
   * @param {ListedMask[]} masks
   */
  put(...masks) {
    const ids = new Set(masks.map((mask) => mask.mask));
    this.#masks = [...this.#masks.filter((mask) => !ids.has(mask.mask)), ...masks].sort((a, b) => a.number - b.number);
    this.#update();
  }

  /** @param {ListedMask} removed */
  remove(removed) {
    this.#masks = this.#masks.filter((mask) => mask !== removed);
    this.#update();
  }

  /**
   * Add the proposed masks that are not listed yet.
   * @param {MaskJson[]} masks
   */
  addProposals(masks) {
    const proposed = masks.filter((mask) => mask.origin === "proposed" && !this.find(mask.mask));
    this.put(...proposed.map((mask) => this.createMask(mask)));
  }

  /**
   * Set the origin of proposed masks to "accepted".
   * @param {ListedMask[]} masks
   */
  setAccepted(masks) {
    for (const mask of masks)
      Object.assign(mask, { origin: "accepted", wasProposed: true, color: colorOf(mask.number, "accepted") });
    this.#update();
  }

  /**
   * Do not draw the mask that is edited; null: draw all.
   * @param {ListedMask | null} mask
   */
  hide(mask) {
    this.#hidden = mask?.mask ?? null;
    this.#redraw();
  }

  /** @param {ListedMask | null} mask */
  mark(mask) {
    this.#marked = mask;
    this.#markedOutline = null;
    if (mask?.crop) {
      const layers = new Layers(this.#height, this.#width, MARK_OUTLINE_SCALE);
      layers.redrawSingle(mask.crop, MARK_COLOR);
      this.#markedOutline = layers.outlines;
    }
    this.markChanged.emit();
  }

  /**
   * Return the marked mask, else the smallest mask at a point, else null.
   * @param {Point} point
   */
  markedOrAt(point) {
    if (this.#marked && this.#masks.includes(this.#marked)) return this.#marked;
    const hits = this.#masks.filter((mask) => mask.crop && cropContains(mask.crop, point.x, point.y));
    /** @param {ListedMask} mask */
    const size = (mask) => (mask.crop ? area(mask.crop.bits) : 0);
    return hits.sort((a, b) => size(a) - size(b))[0] ?? null;
  }

  /**
   * Return the proposed mask after another one, cyclic; null if there is none.
   * @param {ListedMask | null} mask
   */
  proposalAfter(mask) {
    const others = this.proposals.filter((other) => other !== mask);
    return others.find((other) => other.number > (mask?.number ?? -1)) ?? others[0] ?? null;
  }

  #update() {
    this.#redraw();
    this.mark(null);
    this.changed.emit();
  }

  #redraw() {
    this.#layers.redraw(this.#masks.filter((mask) => mask.mask !== this.#hidden));
  }
}
