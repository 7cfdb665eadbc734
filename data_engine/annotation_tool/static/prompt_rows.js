// Prompts as the decoder takes them.

/** @import { Box, PromptPoint } from "./types.js" */

/** Labels of points, as PointLabel in sam_train/structures.py. */
export const LABELS = { PADDING: -1, BACKGROUND: 0, FOREGROUND: 1, BOX_TOP_LEFT: 2, BOX_BOTTOM_RIGHT: 3 };

/**
 * Return a prompt as rows [x, y, label]; a box is its two corners.
 * @param {PromptPoint[]} points
 * @param {Box | null} box
 */
export function promptRows(points, box) {
  const rows = points.map(({ x, y, label }) => [x, y, label]);
  if (box) rows.push([box[0], box[1], LABELS.BOX_TOP_LEFT], [box[2], box[3], LABELS.BOX_BOTTOM_RIGHT]);
  return rows;
}
