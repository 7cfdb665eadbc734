// Types that several modules share (JSDoc only).

/** @typedef {{x: number, y: number}} Point Image frame, in pixels. */

/** @typedef {{x: number, y: number, label: number}} PromptPoint A point prompt; label 1: foreground, 0: background. */

/** @typedef {[number, number, number, number]} Box x0, y0, x1, y1 in the image frame. */

/** @typedef {[number, number, number]} Color Red, green, blue, 0 to 255. */

/** @typedef {{size: number[], counts: string}} Rle COCO compressed RLE; size is height, width. */

/** @typedef {{x: number, y: number, width: number, height: number}} Rectangle */

/** @typedef {Rectangle & {bits: Uint8Array}} Crop A mask cropped to its bounding box, row-major, 1 inside. */

/**
 * A mask as the server sends it.
 * @typedef {object} MaskJson
 * @property {string} mask UUID.
 * @property {number} number
 * @property {string} name Text prompt or class name, "" without one.
 * @property {string} origin proposed, accepted, edited, clicked or drawn.
 * @property {number} area
 * @property {Rle} rle
 * @property {number} predicted_iou
 * @property {number[][]} prompts [x, y, label] each.
 */

/** @typedef {MaskJson & {wasProposed: boolean, crop: Crop | null, color: Color}} ListedMask A mask of the open image. */

/**
 * A task as the server sends it.
 * @typedef {object} Task
 * @property {number} id
 * @property {string} image
 * @property {string} origin
 * @property {number} height
 * @property {number} width
 * @property {string} state
 * @property {string} note A reviewer's note, "" without one.
 * @property {string | null} annotator
 * @property {MaskJson[]} masks
 */

/** @typedef {{task: Task | null, task_counts: Record<string, number>, correcting?: boolean}} TaskResponse */

/** @typedef {{checkpoint: string, image_size: number, logits_size: number, decoder: string | null}} ModelInfo */

/**
 * Response of /api/session.
 * @typedef {object} Session
 * @property {string} annotator
 * @property {string} role annotator or reviewer.
 * @property {ModelInfo | null} model
 * @property {number} idle_after_s
 * @property {number} move_on_after_s
 * @property {string[]} skip_reasons
 * @property {boolean} has_proposals
 */

/**
 * Masks that the decoder predicted for one prompt.
 * @typedef {object} Prediction
 * @property {number[]} scores Predicted IoUs.
 * @property {Float32Array} logits numMasks x gridSize x gridSize.
 * @property {number} numMasks
 * @property {number} gridSize
 */

/**
 * A prompt for the decoder. mask: logits of a mask prompt; multimask: predict three masks of an ambiguous prompt.
 * @typedef {{points: PromptPoint[], box: Box | null, mask: Float32Array | null, multimask: boolean}} Prompt
 */

/**
 * The cost and the mask of a commit.
 * @typedef {object} MaskCommit
 * @property {Rle} rle
 * @property {string} origin
 * @property {number} predicted_iou
 * @property {number} stability_score
 * @property {number[][]} prompts
 * @property {number} clicks
 * @property {number} strokes
 * @property {string} checkpoint
 */

/**
 * The unfinished mask in localStorage.
 * @typedef {object} Draft
 * @property {number} task
 * @property {number} seconds
 * @property {number} wall
 * @property {PromptPoint[]} points
 * @property {Box | null} box
 * @property {boolean} painted
 * @property {string | null} counts
 * @property {number} clicks
 * @property {number} strokes
 * @property {string | null} editing Id of the mask that is edited.
 */

/** @typedef {{key: string, shift: boolean, repeat: boolean}} KeyPress */

export {};
