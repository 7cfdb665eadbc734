// The canvas: pan, zoom, and drawing of a scene over the image.

/** @import { Box, Point, PromptPoint } from "./types.js" */
/** @import { Layers } from "./layers.js" */

const ADD_COLOR = "#3ddc84";
const REMOVE_COLOR = "#ff5d5d";
const MIN_SCALE = 0.02;
const MAX_SCALE = 40;
const MARGIN = 32; // screen pixels around a fitted image

/**
 * What is drawn over the image.
 * @typedef {object} Scene
 * @property {Layers} masks
 * @property {OffscreenCanvas | null} marked Outline of the marked mask.
 * @property {Layers | null} current The mask that is being made.
 * @property {Layers | null} preview
 * @property {PromptPoint[]} points
 * @property {PromptPoint | null} hoveredPoint
 * @property {Box | null} box
 * @property {Point} cursor
 * @property {boolean} showCross
 * @property {string} tool
 * @property {number} brushRadius
 * @property {number} opacity
 * @property {string} style both, fills or outlines.
 * @property {boolean} hidden
 */

export class Viewport {
  /** Screen pixels per image pixel. */
  scale = 1;
  left = 0;
  top = 0;
  #canvas;
  #context;
  /** @type {ImageBitmap | null} */
  #image = null;
  #width = 1;
  #height = 1;
  /** @type {Scene | null} */
  #scene = null;
  #frameRequested = false;
  #touched = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    const context = canvas.getContext("2d", { alpha: false });
    if (!context) throw new Error("the browser provides no 2D canvas context");
    this.#canvas = canvas;
    this.#context = context;
    new ResizeObserver(() => this.#resized()).observe(canvas);
  }

  get context() {
    return this.#context;
  }

  get image() {
    return this.#image;
  }

  /**
   * Show an image and fit it.
   * @param {ImageBitmap} image
   * @param {number} width
   * @param {number} height
   */
  showImage(image, width, height) {
    this.#image = image;
    this.#width = width;
    this.#height = height;
    this.fit();
  }

  clear() {
    this.#image = null;
    this.requestDraw();
  }

  /** @param {Scene} scene */
  setScene(scene) {
    this.#scene = scene;
    this.requestDraw();
  }

  fit() {
    if (!this.#image) return;
    const [w, h] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    this.scale = Math.min((w - MARGIN) / this.#width, (h - MARGIN) / this.#height);
    this.left = (w - this.#width * this.scale) / 2;
    this.top = (h - this.#height * this.scale) / 2;
    this.#touched = false;
    this.requestDraw();
  }

  /**
   * Zoom about a point of the canvas.
   * @param {number} factor
   * @param {number} x
   * @param {number} y
   */
  zoom(factor, x, y) {
    const scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.#touched = true;
    this.requestDraw();
  }

  /**
   * @param {number} dx
   * @param {number} dy
   */
  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.#touched = true;
    this.requestDraw();
  }

  /**
   * Map a point of the canvas to the image frame.
   * @param {number} x
   * @param {number} y
   * @returns {Point}
   */
  toImage(x, y) {
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  /**
   * Map a point of the image frame to the canvas.
   * @param {number} x
   * @param {number} y
   * @returns {Point}
   */
  toScreen(x, y) {
    return { x: x * this.scale + this.left, y: y * this.scale + this.top };
  }

  /** Draw at the next frame, once for any number of changes. */
  requestDraw() {
    if (this.#frameRequested) return;
    this.#frameRequested = true;
    requestAnimationFrame(() => {
      this.#frameRequested = false;
      this.draw();
    });
  }

  draw() {
    const c = this.#context;
    const scene = this.#scene;
    const ratio = this.#canvas.width / Math.max(1, this.#canvas.clientWidth);
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = "#14161a";
    c.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!this.#image || !scene) return;
    c.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    c.imageSmoothingEnabled = this.scale < 3;
    this.#drawOver(this.#image, 1);
    this.#drawMasks(scene);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#drawPrompts(scene);
    this.#drawCursor(scene);
  }

  #resized() {
    const ratio = window.devicePixelRatio || 1;
    this.#canvas.width = Math.max(1, Math.round(this.#canvas.clientWidth * ratio));
    this.#canvas.height = Math.max(1, Math.round(this.#canvas.clientHeight * ratio));
    if (!this.#touched) this.fit();
    this.requestDraw();
  }

  /**
   * @param {CanvasImageSource} source
   * @param {number} alpha
   */
  #drawOver(source, alpha) {
    this.#context.globalAlpha = alpha;
    this.#context.drawImage(source, 0, 0, this.#width, this.#height);
    this.#context.globalAlpha = 1;
  }

  /** @param {Scene} scene */
  #drawMasks(scene) {
    if (!scene.hidden) {
      if (scene.style !== "outlines") this.#drawOver(scene.masks.fills, scene.opacity);
      if (scene.style !== "fills") this.#drawOver(scene.masks.outlines, 0.95);
      if (scene.marked) this.#drawOver(scene.marked, 0.9);
    }
    if (scene.preview) {
      this.#drawOver(scene.preview.fills, 0.35);
      this.#drawOver(scene.preview.outlines, 0.8);
    }
    if (scene.current) {
      this.#drawOver(scene.current.fills, Math.max(0.25, scene.opacity));
      this.#drawOver(scene.current.outlines, 1);
    }
  }

  /** @param {Scene} scene */
  #drawPrompts({ box, points, hoveredPoint }) {
    const c = this.#context;
    if (box) {
      const a = this.toScreen(box[0], box[1]);
      const b = this.toScreen(box[2], box[3]);
      c.lineWidth = 1.5;
      c.strokeStyle = ADD_COLOR;
      c.setLineDash([6, 4]);
      c.strokeRect(a.x, a.y, b.x - a.x, b.y - a.y);
      c.setLineDash([]);
    }
    for (const point of points) {
      const { x, y } = this.toScreen(point.x, point.y);
      c.beginPath();
      c.arc(x, y, point === hoveredPoint ? 8 : 6, 0, 2 * Math.PI);
      c.fillStyle = point.label ? ADD_COLOR : REMOVE_COLOR;
      c.fill();
      c.lineWidth = 2;
      c.strokeStyle = "#0c0d10";
      c.stroke();
      c.beginPath(); // a plus or minus sign as well, for color-blind annotators
      c.moveTo(x - 3, y);
      c.lineTo(x + 3, y);
      if (point.label) {
        c.moveTo(x, y - 3);
        c.lineTo(x, y + 3);
      }
      c.stroke();
    }
  }

  /** @param {Scene} scene */
  #drawCursor({ cursor, tool, brushRadius, showCross }) {
    const { x, y } = this.toScreen(cursor.x, cursor.y);
    if (tool === "brush" || tool === "eraser") {
      this.#strokeTwice(1.5, tool === "brush" ? ADD_COLOR : REMOVE_COLOR, (c) => {
        c.arc(x, y, Math.max(1, brushRadius * this.scale), 0, 2 * Math.PI);
      });
    } else if (showCross) {
      this.#strokeTwice(1, "#fff", (c) => {
        c.moveTo(x - 14, y);
        c.lineTo(x + 14, y);
        c.moveTo(x, y - 14);
        c.lineTo(x, y + 14);
      });
    }
  }

  /**
   * Stroke a path in a color, over a wider dark stroke.
   * @param {number} lineWidth
   * @param {string} color
   * @param {(context: CanvasRenderingContext2D) => void} addPath
   */
  #strokeTwice(lineWidth, color, addPath) {
    const c = this.#context;
    for (const [width, style] of /** @type {[number, string][]} */ ([
      [3, "#000a"],
      [lineWidth, color],
    ])) {
      c.beginPath();
      addPath(c);
      c.lineWidth = width;
      c.strokeStyle = style;
      c.stroke();
    }
  }
}
