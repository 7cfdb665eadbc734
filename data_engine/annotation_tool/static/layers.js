// All masks of an image on two canvases, one of fills and one of outlines: 200 masks cost as much to show as one.
import { boxOf } from "./rle.js";

const MOST = 3000; // pixels along a side of the canvases

export function colorOf(number, origin) {
  if (origin === "proposed") return [205, 214, 226];
  const hue = (number * 137.508 + 200) % 360;
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.38 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

// A mask cut to its box: { x, y, width, height, bits }, or null when it is empty.
export function cropped(bits, height, width) {
  const box = boxOf(bits, height, width);
  if (!box) return null;
  const part = new Uint8Array(box.width * box.height);
  for (let y = 0; y < box.height; y++) {
    const start = (box.y + y) * width + box.x;
    part.set(bits.subarray(start, start + box.width), y * box.width);
  }
  return { ...box, bits: part };
}

export function holds(crop, x, y) {
  const [column, row] = [Math.floor(x) - crop.x, Math.floor(y) - crop.y];
  return column >= 0 && row >= 0 && column < crop.width && row < crop.height && crop.bits[row * crop.width + column] === 1;
}

const scratch = new OffscreenCanvas(1, 1);

// Draws a crop in one color; thickness 0 fills, else its edge of so many pixels.
function stamp(context, crop, color, thickness, scale) {
  const { width, height, bits } = crop;
  if (scratch.width < width || scratch.height < height) {
    scratch.width = Math.max(scratch.width, width);
    scratch.height = Math.max(scratch.height, height);
  }
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  const word = (255 << 24) | (color[2] << 16) | (color[1] << 8) | color[0];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!bits[at]) continue;
      if (thickness) {
        const t = thickness;
        const inside = x >= t && y >= t && x + t < width && y + t < height;
        if (inside && bits[at - t] && bits[at + t] && bits[at - t * width] && bits[at + t * width]) continue;
      }
      words[at] = word;
    }
  }
  const pen = scratch.getContext("2d");
  pen.putImageData(pixels, 0, 0);
  context.drawImage(scratch, 0, 0, width, height, crop.x * scale, crop.y * scale, width * scale, height * scale);
}

export class Layers {
  constructor(height, width) {
    this.scale = Math.min(1, MOST / Math.max(height, width));
    const size = [Math.max(1, Math.round(width * this.scale)), Math.max(1, Math.round(height * this.scale))];
    this.fills = new OffscreenCanvas(...size);
    this.outlines = new OffscreenCanvas(...size);
    this.thickness = Math.max(1, Math.round(Math.max(height, width) / 900));
  }

  add(crop, color) {
    stamp(this.fills.getContext("2d"), crop, color, 0, this.scale);
    stamp(this.outlines.getContext("2d"), crop, color, this.thickness, this.scale);
  }

  // Largest first, so that a part lies on its whole.
  redraw(masks) {
    for (const canvas of [this.fills, this.outlines]) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    [...masks].sort((a, b) => b.area - a.area).forEach((mask) => mask.crop && this.add(mask.crop, mask.color));
  }

  only(crop, color) {
    this.redraw([]);
    if (crop) this.add(crop, color);
  }
}
