// Conversion between little-endian float16 and float32.

/** @type {Float32Array | null} */
let table = null;

/**
 * @param {ArrayBuffer} buffer Float16 values.
 * @returns {Float32Array<ArrayBuffer>}
 */
export function fromHalf(buffer) {
  const halves = new Uint16Array(buffer);
  table ??= createTable();
  const values = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) values[i] = table[halves[i]];
  return values;
}

function createTable() {
  const values = new Float32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const exponent = (h >> 10) & 31;
    const fraction = h & 1023;
    const size =
      exponent === 0
        ? fraction * 2 ** -24
        : exponent === 31
          ? fraction
            ? NaN
            : Infinity
          : (1 + fraction / 1024) * 2 ** (exponent - 15);
    values[h] = h & 32768 ? -size : size;
  }
  return values;
}

/** @param {Float32Array} values */
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

/**
 * Encode float16 values as base64.
 * @param {Uint16Array} halves
 */
export function base64(halves) {
  const bytes = new Uint8Array(halves.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}
