// One step of the mask editor.

/** @import { Box, ListedMask, PromptPoint } from "./types.js" */
/** @import { SortedPrediction } from "./prediction.js" */

/**
 * One step. base: logits of the mask prompt. counts: RLE of a mask that is not a prediction.
 * @typedef {object} EditState
 * @property {PromptPoint[]} points
 * @property {Box | null} box
 * @property {Float32Array | null} base
 * @property {SortedPrediction | null} prediction
 * @property {number} choice Index of the chosen mask in `prediction`.
 * @property {string | null} counts
 * @property {boolean} painted Whether the mask was changed by hand since the last prediction.
 */

/** @returns {EditState} */
export const emptyState = () => ({
  points: [],
  box: null,
  base: null,
  prediction: null,
  choice: 0,
  counts: null,
  painted: false,
});

/**
 * Return the origin of a listed mask after it was edited: a proposal, or a prediction changed by hand, becomes "edited".
 * @param {ListedMask} previous
 * @param {string} counts
 * @param {number} strokes
 */
export function originAfterEdit(previous, counts, strokes) {
  if (previous.wasProposed || ["proposed", "accepted", "edited"].includes(previous.origin)) {
    return previous.origin === "proposed" && counts === previous.rle.counts ? "accepted" : "edited";
  }
  return previous.origin === "clicked" && strokes ? "edited" : previous.origin;
}
