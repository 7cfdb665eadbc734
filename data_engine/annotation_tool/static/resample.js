// Resampling between the decoder's grid and the image. The same steps as sam_train/geometry.py, Resize: bilinear to the model
// frame, padding cropped, bilinear to the image; both steps in one, with three taps per axis.
import { clamp } from "./dom.js";
import { area } from "./rle.js";

export class Resize {
  /**
   * @param {number} height Of the image.
   * @param {number} width
   * @param {number} size Side of the model frame.
   */
  constructor(height, width, size) {
    const scale = size / Math.max(height, width);
    this.height = height;
    this.width = width;
    this.size = size;
    this.scaledHeight = Math.max(1, Math.floor(height * scale + 0.5));
    this.scaledWidth = Math.max(1, Math.floor(width * scale + 0.5));
  }

  /**
   * Map a point from the image frame to the model frame.
   * @param {number} x
   * @param {number} y
   */
  pointToModel(x, y) {
    return [(x * this.scaledWidth) / this.width, (y * this.scaledHeight) / this.height];
  }

  /**
   * Return the height x width mask where logits (gridSize x gridSize, from `offset` on) are above a threshold.
   * @param {Float32Array | number[]} logits
   * @param {number} gridSize
   */
  maskFromLogits(logits, gridSize, offset = 0, threshold = 0) {
    const rows = taps(gridSize, this.size, this.scaledHeight, this.height);
    const columns = taps(gridSize, this.size, this.scaledWidth, this.width);
    const { height, width } = this;
    const wide = new Float32Array(gridSize * width);
    const rowMaxima = new Float32Array(gridSize).fill(-Infinity);
    for (let g = 0; g < gridSize; g++) {
      const from = offset + g * gridSize;
      for (let x = 0; x < width; x++) {
        const [a, b, c] = [columns.indices[3 * x], columns.indices[3 * x + 1], columns.indices[3 * x + 2]];
        const w = columns.weights;
        const value = logits[from + a] * w[3 * x] + logits[from + b] * w[3 * x + 1] + logits[from + c] * w[3 * x + 2];
        wide[g * width + x] = value;
        if (value > rowMaxima[g]) rowMaxima[g] = value;
      }
    }
    const bits = new Uint8Array(height * width);
    for (let y = 0; y < height; y++) {
      const [a, b, c] = [rows.indices[3 * y], rows.indices[3 * y + 1], rows.indices[3 * y + 2]];
      if (Math.max(rowMaxima[a], rowMaxima[b], rowMaxima[c]) <= threshold) continue;
      const [wa, wb, wc] = [rows.weights[3 * y], rows.weights[3 * y + 1], rows.weights[3 * y + 2]];
      for (let x = 0, at = y * width, i = a * width, j = b * width, k = c * width; x < width; x++, at++, i++, j++, k++) {
        if (wide[i] * wa + wide[j] * wb + wide[k] * wc > threshold) bits[at] = 1;
      }
    }
    return bits;
  }

  /**
   * Return the stability score: IoU of the masks at thresholds 1 and -1, at the resolution of the image (paper, section B).
   * @param {Float32Array | number[]} logits
   * @param {number} gridSize
   */
  stabilityScore(logits, gridSize, offset = 0) {
    const [inner, outer] = [1, -1].map((threshold) => area(this.maskFromLogits(logits, gridSize, offset, threshold)));
    return inner / Math.max(1, outer);
  }

  /**
   * Return logits for a mask without a prediction: from -8 to 8 by the share of each grid cell that lies inside the mask.
   * @param {Uint8Array} bits
   * @param {number} gridSize
   */
  logitsFromMask(bits, gridSize) {
    const sums = new Float32Array(gridSize * gridSize);
    const areas = new Float32Array(gridSize * gridSize);
    const ratioX = (this.scaledWidth / this.width) * (gridSize / this.size);
    const ratioY = (this.scaledHeight / this.height) * (gridSize / this.size);
    for (let y = 0; y < this.height; y++) {
      const row = Math.min(gridSize - 1, Math.floor((y + 0.5) * ratioY)) * gridSize;
      for (let x = 0, at = y * this.width; x < this.width; x++, at++) {
        const cell = row + Math.min(gridSize - 1, Math.floor((x + 0.5) * ratioX));
        sums[cell] += bits[at];
        areas[cell]++;
      }
    }
    return sums.map((sum, cell) => (areas[cell] ? 16 * (sum / areas[cell]) - 8 : -8));
  }
}

/**
 * Return the source index below pixel i of a bilinear resampling, and the weight of the next one.
 * @param {number} from Source length.
 * @param {number} to Target length.
 * @param {number} i
 */
function bilinear(from, to, i) {
  const position = (i + 0.5) * (from / to) - 0.5;
  const below = Math.floor(position);
  return [below, position - below];
}

/** @typedef {{indices: Int32Array, weights: Float32Array}} Taps Three grid indices and weights for each pixel. */

/** @type {Map<string, Taps>} */
const cache = new Map();

/**
 * @param {number} gridSize
 * @param {number} size
 * @param {number} scaled
 * @param {number} length
 * @returns {Taps}
 */
function taps(gridSize, size, scaled, length) {
  const key = `${gridSize},${size},${scaled},${length}`;
  const cached = cache.get(key);
  if (cached) return cached;
  const indices = new Int32Array(3 * length);
  const weights = new Float32Array(3 * length);
  for (let n = 0; n < length; n++) {
    const [below, weight] = bilinear(scaled, length, n);
    const here = clamp(below, scaled - 1);
    const next = clamp(below + 1, scaled - 1);
    const first = bilinear(gridSize, size, here)[0];
    for (const [pixel, part] of [
      [here, 1 - weight],
      [next, weight],
    ]) {
      const [left, right] = bilinear(gridSize, size, pixel);
      weights[3 * n + left - first] += part * (1 - right);
      weights[3 * n + left - first + 1] += part * right;
    }
    for (let k = 0; k < 3; k++) indices[3 * n + k] = clamp(first + k, gridSize - 1);
  }
  if (cache.size > 16) cache.clear();
  const result = { indices, weights };
  cache.set(key, result);
  return result;
}
