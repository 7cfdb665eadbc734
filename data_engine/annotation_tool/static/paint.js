// Painting pixels of a mask.

/** @import { Point } from "./types.js" */

/**
 * Set all pixels within `radius` of the line from a to b to `value`.
 * @param {Uint8Array} bits
 * @param {{height: number, width: number}} size Of the mask.
 * @param {Point} a
 * @param {Point} b
 * @param {number} radius
 * @param {number} value
 */
export function paintLine(bits, { height, width }, a, b, radius, value) {
  const [left, right] = [Math.min(a.x, b.x) - radius, Math.max(a.x, b.x) + radius];
  const [top, bottom] = [Math.min(a.y, b.y) - radius, Math.max(a.y, b.y) + radius];
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = dx * dx + dy * dy || 1;
  for (let y = Math.max(0, Math.floor(top)); y < Math.min(height, bottom); y++) {
    for (let x = Math.max(0, Math.floor(left)); x < Math.min(width, right); x++) {
      const [px, py] = [x + 0.5 - a.x, y + 0.5 - a.y];
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) bits[y * width + x] = value;
    }
  }
}
