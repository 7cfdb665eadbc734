// From the decoder's grid to the image and back. The same steps as sam_train/geometry.py, Resize: bilinear to the model frame,
// padding cut off, bilinear to the image; both in one, three neighbours an axis.

export class Resize {
  constructor(height, width, size) {
    const scale = size / Math.max(height, width);
    this.height = height;
    this.width = width;
    this.size = size;
    this.scaledHeight = Math.max(1, Math.floor(height * scale + 0.5));
    this.scaledWidth = Math.max(1, Math.floor(width * scale + 0.5));
  }

  pointToModel(x, y) {
    return [(x * this.scaledWidth) / this.width, (y * this.scaledHeight) / this.height];
  }

  // Where logits (grid x grid, one of several from `offset` on) are above 0, as height x width bits.
  maskOf(logits, grid, offset = 0) {
    const rows = taps(grid, this.size, this.scaledHeight, this.height);
    const columns = taps(grid, this.size, this.scaledWidth, this.width);
    const { height, width } = this;
    const wide = new Float32Array(grid * width);
    const most = new Float32Array(grid).fill(-Infinity);
    for (let g = 0; g < grid; g++) {
      const from = offset + g * grid;
      for (let x = 0; x < width; x++) {
        const [a, b, c] = [columns.at[3 * x], columns.at[3 * x + 1], columns.at[3 * x + 2]];
        const w = columns.weights;
        const value = logits[from + a] * w[3 * x] + logits[from + b] * w[3 * x + 1] + logits[from + c] * w[3 * x + 2];
        wide[g * width + x] = value;
        if (value > most[g]) most[g] = value;
      }
    }
    const bits = new Uint8Array(height * width);
    for (let y = 0; y < height; y++) {
      const [a, b, c] = [rows.at[3 * y], rows.at[3 * y + 1], rows.at[3 * y + 2]];
      if (most[a] <= 0 && most[b] <= 0 && most[c] <= 0) continue;
      const [wa, wb, wc] = [rows.weights[3 * y], rows.weights[3 * y + 1], rows.weights[3 * y + 2]];
      for (let x = 0, at = y * width, i = a * width, j = b * width, k = c * width; x < width; x++, at++, i++, j++, k++) {
        if (wide[i] * wa + wide[j] * wb + wide[k] * wc > 0) bits[at] = 1;
      }
    }
    return bits;
  }

  // Logits for a mask that no decoder of this session answered: the share of each cell that lies inside, -8 to 8.
  logitsOf(bits, grid) {
    const sums = new Float32Array(grid * grid);
    const areas = new Float32Array(grid * grid);
    const ratioX = (this.scaledWidth / this.width) * (grid / this.size);
    const ratioY = (this.scaledHeight / this.height) * (grid / this.size);
    for (let y = 0; y < this.height; y++) {
      const row = Math.min(grid - 1, Math.floor((y + 0.5) * ratioY)) * grid;
      for (let x = 0, at = y * this.width; x < this.width; x++, at++) {
        const cell = row + Math.min(grid - 1, Math.floor((x + 0.5) * ratioX));
        sums[cell] += bits[at];
        areas[cell]++;
      }
    }
    return sums.map((sum, cell) => (areas[cell] ? 16 * (sum / areas[cell]) - 8 : -8));
  }
}

function between(from, to, i) {
  const place = (i + 0.5) * (from / to) - 0.5;
  const before = Math.floor(place);
  return [before, place - before];
}

const cache = new Map();

function taps(grid, size, scaled, length) {
  const name = `${grid},${size},${scaled},${length}`;
  if (cache.has(name)) return cache.get(name);
  const at = new Int32Array(3 * length);
  const weights = new Float32Array(3 * length);
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  for (let n = 0; n < length; n++) {
    const [u, share] = between(scaled, length, n);
    const here = clip(u, scaled - 1);
    const next = clip(u + 1, scaled - 1);
    const first = between(grid, size, here)[0];
    for (const [pixel, part] of [[here, 1 - share], [next, share]]) {
      const [left, right] = between(grid, size, pixel);
      weights[3 * n + left - first] += part * (1 - right);
      weights[3 * n + left - first + 1] += part * right;
    }
    for (let k = 0; k < 3; k++) at[3 * n + k] = clip(first + k, grid - 1);
  }
  if (cache.size > 16) cache.clear();
  cache.set(name, { at, weights });
  return cache.get(name);
}

export function stability(logits, offset, length) {
  let inner = 0;
  let outer = 0;
  for (let i = offset; i < offset + length; i++) {
    if (logits[i] > 1) inner++;
    if (logits[i] > -1) outer++;
  }
  return outer ? inner / outer : 0;
}

// Half precision, little-endian, to numbers and back.
export function fromHalf(buffer) {
  const halves = new Uint16Array(buffer);
  if (!halfTable.length) fillTable();
  const values = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) values[i] = halfTable[halves[i]];
  return values;
}

let halfTable = new Float32Array(0);

function fillTable() {
  halfTable = new Float32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
    halfTable[h] = h & 32768 ? -size : size;
  }
}

export function toHalf(values) {
  const single = new Float32Array(1);
  const word = new Uint32Array(single.buffer);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    single[0] = Math.min(Math.max(values[i], -60000), 60000);
    const sign = (word[0] >> 16) & 0x8000;
    const exponent = ((word[0] >> 23) & 255) - 112;
    const fraction = word[0] & 0x7fffff;
    halves[i] = exponent <= 0 ? sign : sign | (((exponent << 10) | (fraction >> 13)) + ((fraction >> 12) & 1));
  }
  return halves;
}
