// COCO compressed RLE as pycocotools writes it (maskApi.c): runs down the columns, background first. Masks are row-major
// Uint8Array, 1 inside.

/** @import { Rectangle } from "./types.js" */

/**
 * Encode a mask.
 * @param {Uint8Array} bits
 * @param {number} height
 * @param {number} width
 */
export function encode(bits, height, width) {
  const runs = [];
  let value = 0;
  let length = 0;
  const box = boundingBox(bits, height, width);
  if (box) {
    length = box.x * height; // the columns before the box are background
    for (let x = box.x; x < box.x + box.width; x++) {
      for (let y = 0, at = x; y < height; y++, at += width) {
        if (bits[at] === value) length++;
        else {
          runs.push(length);
          value ^= 1;
          length = 1;
        }
      }
    }
    const rest = (width - box.x - box.width) * height;
    if (value && rest) {
      runs.push(length);
      value = 0;
      length = 0;
    }
    length += rest;
  } else length = height * width;
  runs.push(length);
  return compress(runs);
}

/** @param {number[]} runs */
function compress(runs) {
  /** @type {string[]} */
  const letters = [];
  runs.forEach((run, i) => {
    let rest = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more; ) {
      let code = rest & 0x1f;
      rest >>= 5;
      more = code & 0x10 ? rest !== -1 : rest !== 0;
      if (more) code |= 0x20;
      letters.push(String.fromCharCode(code + 48));
    }
  });
  return letters.join("");
}

/**
 * Decode a mask.
 * @param {string} counts
 * @param {number} height
 * @param {number} width
 */
export function decode(counts, height, width) {
  const bits = new Uint8Array(height * width);
  const runs = [];
  let offset = 0; // in column-major order
  for (let i = 0; i < counts.length; ) {
    let run = 0;
    let shift = 0;
    for (let more = true; more; shift += 5) {
      const code = counts.charCodeAt(i++) - 48;
      run |= (code & 0x1f) << shift;
      more = (code & 0x20) !== 0;
      if (!more && code & 0x10) run |= -1 << (shift + 5);
    }
    if (runs.length > 2) run += runs[runs.length - 2];
    if (runs.length % 2) {
      for (let end = offset + run, p = offset; p < end; p++) bits[(p % height) * width + Math.floor(p / height)] = 1;
    }
    runs.push(run);
    offset += run;
  }
  return bits;
}

/**
 * Return the bounding box of a mask, null if it is empty.
 * @param {Uint8Array} bits
 * @param {number} height
 * @param {number} width
 * @returns {Rectangle | null}
 */
export function boundingBox(bits, height, width) {
  let top = -1;
  let bottom = -1;
  let left = width;
  let right = -1;
  for (let y = 0; y < height; y++) {
    const start = y * width;
    const first = bits.indexOf(1, start);
    if (first < 0) break;
    if (first >= start + width) {
      y = Math.floor(first / width) - 1;
      continue;
    }
    const last = bits.lastIndexOf(1, start + width - 1);
    if (top < 0) top = y;
    bottom = y;
    left = Math.min(left, first - start);
    right = Math.max(right, last - start);
  }
  return top < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

/**
 * Return the number of pixels inside a mask.
 * @param {Uint8Array} bits
 */
export function area(bits) {
  let sum = 0;
  for (let i = 0; i < bits.length; i++) sum += bits[i];
  return sum;
}
