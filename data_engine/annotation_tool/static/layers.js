// All masks of an image on two canvases, one of fills and one of outlines: drawing 200 masks costs as much as drawing one.
import { boundingBox } from "./rle.js";

/** @import { Color, Crop } from "./types.js" */

const MAX_SIDE = 3000; // canvas pixels

/**
 * Return the display color of a mask.
 * @param {number} number
 * @param {string} origin
 * @returns {Color}
 */
export function colorOf(number, origin) {
  if (origin === "proposed") return [205, 214, 226];
  const hue = (number * 137.508 + 200) % 360;
  /** @param {number} n */
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.38 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

/**
 * Crop a mask to its bounding box; null if it is empty.
 * @param {Uint8Array} bits
 * @param {number} height
 * @param {number} width
 * @returns {Crop | null}
 */
export function cropMask(bits, height, width) {
  const box = boundingBox(bits, height, width);
  if (!box) return null;
  const part = new Uint8Array(box.width * box.height);
  for (let y = 0; y < box.height; y++) {
    const start = (box.y + y) * width + box.x;
    part.set(bits.subarray(start, start + box.width), y * box.width);
  }
  return { ...box, bits: part };
}

/**
 * Return whether a point of the image lies inside a cropped mask.
 * @param {Crop} crop
 * @param {number} x
 * @param {number} y
 */
export function cropContains(crop, x, y) {
  const [column, row] = [Math.floor(x) - crop.x, Math.floor(y) - crop.y];
  return column >= 0 && row >= 0 && column < crop.width && row < crop.height && crop.bits[row * crop.width + column] === 1;
}

const scratch = new OffscreenCanvas(1, 1);

/**
 * Return the 2D context of an offscreen canvas.
 * @param {OffscreenCanvas} canvas
 */
function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("the browser provides no 2D canvas context");
  return context;
}

/**
 * Draw a mask: filled if thickness is 0, else an outline of `thickness` pixels.
 * @param {OffscreenCanvasRenderingContext2D} context
 * @param {Crop} crop
 * @param {Color} color
 * @param {number} thickness
 * @param {number} scale
 */
function drawMask(context, crop, color, thickness, scale) {
  const { width, height, bits } = crop;
  if (scratch.width < width || scratch.height < height) {
    scratch.width = Math.max(scratch.width, width);
    scratch.height = Math.max(scratch.height, height);
  }
  const pixels = new ImageData(width, height);
  const rgba = new Uint32Array(pixels.data.buffer);
  const value = (255 << 24) | (color[2] << 16) | (color[1] << 8) | color[0];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!bits[at]) continue;
      if (thickness) {
        const t = thickness;
        const inside = x >= t && y >= t && x + t < width && y + t < height;
        if (inside && bits[at - t] && bits[at + t] && bits[at - t * width] && bits[at + t * width]) continue;
      }
      rgba[at] = value;
    }
  }
  contextOf(scratch).putImageData(pixels, 0, 0);
  context.drawImage(scratch, 0, 0, width, height, crop.x * scale, crop.y * scale, width * scale, height * scale);
}

export class Layers {
  /**
   * @param {number} height Of the image.
   * @param {number} width
   * @param {number} outlineScale Factor of the outlines' thickness.
   */
  constructor(height, width, outlineScale = 1) {
    this.scale = Math.min(1, MAX_SIDE / Math.max(height, width));
    const canvasWidth = Math.max(1, Math.round(width * this.scale));
    const canvasHeight = Math.max(1, Math.round(height * this.scale));
    this.fills = new OffscreenCanvas(canvasWidth, canvasHeight);
    this.outlines = new OffscreenCanvas(canvasWidth, canvasHeight);
    this.thickness = outlineScale * Math.max(1, Math.round(Math.max(height, width) / 900));
  }

  /**
   * Draw masks, largest first, so that a part lies on top of its whole.
   * @param {{area: number, crop: Crop | null, color: Color}[]} masks
   */
  redraw(masks) {
    for (const canvas of [this.fills, this.outlines]) contextOf(canvas).clearRect(0, 0, canvas.width, canvas.height);
    for (const { crop, color } of [...masks].sort((a, b) => b.area - a.area)) if (crop) this.#add(crop, color);
  }

  /**
   * Draw one mask, or none.
   * @param {Crop | null} crop
   * @param {Color} color
   */
  redrawSingle(crop, color) {
    this.redraw([{ area: 0, crop, color }]);
  }

  /**
   * @param {Crop} crop
   * @param {Color} color
   */
  #add(crop, color) {
    drawMask(contextOf(this.fills), crop, color, 0, this.scale);
    drawMask(contextOf(this.outlines), crop, color, this.thickness, this.scale);
  }
}
