// Pointer events on the canvas, translated to gestures: point, box, stroke, dragged point, pan, zoom.
import { dialogIsOpen, targetMatches } from "./dom.js";

/** @import { Point, PromptPoint } from "./types.js" */
/** @import { Viewport } from "./viewport.js" */

const DRAG_DISTANCE = 5; // screen pixels after which a click is a drag
/** Distance in screen pixels at which a point is hit. */
export const HIT_DISTANCE = 10;
const MIDDLE_BUTTON = 1;
const RIGHT_BUTTON = 2;

/**
 * Handlers of the gestures. inverted: right button or Shift.
 * @typedef {object} Gestures
 * @property {() => boolean} isActive Whether gestures other than pan and zoom are enabled.
 * @property {() => boolean} isBrush
 * @property {(p: Point, radius: number) => PromptPoint | null} pointNear
 * @property {(p: Point) => void} hover
 * @property {() => void} leave
 * @property {(p: Point, label: number) => void} click
 * @property {(a: Point, b: Point) => void} dragBox
 * @property {(a: Point, b: Point) => void} dropBox
 * @property {(point: PromptPoint, p: Point) => void} dragPoint
 * @property {() => void} dropPoint
 * @property {(point: PromptPoint) => void} deletePoint
 * @property {(p: Point, inverted: boolean) => void} beginStroke
 * @property {(p: Point) => void} extendStroke
 * @property {() => void} endStroke
 * @property {() => void} cancel
 * @property {(factor: number) => void} scaleBrush
 */

/**
 * The pressed button.
 * @typedef {object} Press
 * @property {number} sx
 * @property {number} sy
 * @property {Point} start Image frame.
 * @property {boolean} inverted
 * @property {boolean} pans
 * @property {PromptPoint | null} point The prompt point under the pointer.
 * @property {boolean} moved
 * @property {number} button
 */

export class PointerInput {
  #canvas;
  #viewport;
  #gestures;
  /** @type {Press | null} */
  #press = null;
  #spaceIsDown = false;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Viewport} viewport
   * @param {Gestures} gestures
   */
  constructor(canvas, viewport, gestures) {
    this.#canvas = canvas;
    this.#viewport = viewport;
    this.#gestures = gestures;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    window.addEventListener("keydown", (event) => this.#keyDown(event));
    window.addEventListener("keyup", (event) => {
      if (event.key === " ") this.#spaceIsDown = false;
    });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => !this.#press && gestures.leave());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** @param {MouseEvent} event */
  #position(event) {
    const box = this.#canvas.getBoundingClientRect();
    return { sx: event.clientX - box.left, sy: event.clientY - box.top };
  }

  /** @param {KeyboardEvent} event */
  #keyDown(event) {
    if (event.key !== " " || targetMatches(event, "input, button, li") || dialogIsOpen()) return;
    this.#spaceIsDown = true;
    event.preventDefault();
  }

  /** @param {PointerEvent} event */
  #down(event) {
    const active = this.#gestures.isActive();
    const pans = event.button === MIDDLE_BUTTON || (event.button === 0 && (this.#spaceIsDown || !active));
    if (!pans && !active) return;
    this.#canvas.focus({ preventScroll: true });
    const { sx, sy } = this.#position(event);
    const start = this.#viewport.toImage(sx, sy);
    this.#canvas.setPointerCapture(event.pointerId);
    const inverted = event.button === RIGHT_BUTTON || event.shiftKey;
    const point = pans ? null : this.#gestures.pointNear(start, HIT_DISTANCE / this.#viewport.scale);
    this.#press = { sx, sy, start, inverted, pans, point, moved: false, button: event.button };
    if (pans) this.#canvas.classList.add("panning");
    else if (this.#gestures.isBrush()) this.#gestures.beginStroke(start, inverted);
    event.preventDefault();
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const { sx, sy } = this.#position(event);
    const at = this.#viewport.toImage(sx, sy);
    const press = this.#press;
    if (!press) return this.#gestures.hover(at);
    press.moved ||= Math.hypot(sx - press.sx, sy - press.sy) > DRAG_DISTANCE;
    if (press.pans) {
      this.#viewport.pan(event.movementX, event.movementY);
    } else if (this.#gestures.isBrush()) {
      for (const part of event.getCoalescedEvents?.() ?? []) {
        const p = this.#position(part);
        this.#gestures.extendStroke(this.#viewport.toImage(p.sx, p.sy));
      }
      this.#gestures.extendStroke(at);
    } else if (press.moved && press.button === 0) {
      if (press.point) this.#gestures.dragPoint(press.point, at);
      else this.#gestures.dragBox(press.start, at);
    }
  }

  /** @param {PointerEvent} event */
  #up(event) {
    const press = this.#press;
    if (!press) return;
    const { sx, sy } = this.#position(event);
    const at = this.#viewport.toImage(sx, sy);
    this.#press = null;
    this.#canvas.classList.remove("panning");
    if (press.pans) return;
    if (event.type === "pointercancel") this.#gestures.cancel();
    else if (this.#gestures.isBrush()) this.#gestures.endStroke();
    else if (press.moved && press.button === 0) {
      if (press.point) this.#gestures.dropPoint();
      else this.#gestures.dropBox(press.start, at);
    } else if (press.point && press.inverted) this.#gestures.deletePoint(press.point);
    else if (!press.moved) this.#gestures.click(press.start, press.inverted ? 0 : 1);
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    const { sx, sy } = this.#position(event);
    if (event.altKey) this.#gestures.scaleBrush(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    else this.#viewport.zoom(Math.exp(-event.deltaY * 0.0015), sx, sy);
  }
}
