// Predictions of the decoder with their masks sorted by area.

/** @import { Prediction } from "./types.js" */

/** Typical content of the three masks of an ambiguous prompt, smallest first. */
export const MASK_SIZES = ["part", "object", "whole"];

/** @typedef {Prediction & {order: number[]}} SortedPrediction Masks by area; order: their indices in the prediction. */

/**
 * Return the index of the mask with the highest predicted IoU.
 * @param {Prediction} prediction
 */
export const bestMask = ({ scores }) => scores.indexOf(Math.max(...scores));

/**
 * Sort the masks of a prediction by area, smallest first, so that cycling goes from part to whole.
 * @param {Prediction} prediction
 * @returns {SortedPrediction}
 */
export function sortByArea(prediction) {
  if (prediction.numMasks < 2) return { ...prediction, order: [0] };
  const length = prediction.gridSize ** 2;
  const areas = Array.from({ length: prediction.numMasks }, (_, n) => {
    let sum = 0;
    for (let i = n * length; i < (n + 1) * length; i++) if (prediction.logits[i] > 0) sum++;
    return sum;
  });
  const order = areas.map((_, n) => n).sort((a, b) => areas[a] - areas[b]);
  const logits = new Float32Array(prediction.logits.length);
  order.forEach((from, to) => logits.set(prediction.logits.subarray(from * length, (from + 1) * length), to * length));
  return { ...prediction, logits, scores: order.map((n) => prediction.scores[n]), order };
}
