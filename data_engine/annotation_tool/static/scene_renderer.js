// Collects what the viewport draws over the image.
import { Layers, cropMask } from "./layers.js";

/** @import { Cursor } from "./cursor.js" */
/** @import { DisplaySettings } from "./display_settings.js" */
/** @import { MaskEditor } from "./mask_editor.js" */
/** @import { MaskList } from "./mask_list.js" */
/** @import { Preview } from "./preview.js" */
/** @import { PromptController } from "./prompt_controller.js" */
/** @import { Tools } from "./tools.js" */
/** @import { Viewport } from "./viewport.js" */

const CURRENT_COLOR = /** @type {[number, number, number]} */ ([255, 214, 10]);

/**
 * @typedef {object} SceneParts
 * @property {Viewport} viewport
 * @property {MaskEditor} editor
 * @property {MaskList} masks
 * @property {Preview} preview
 * @property {PromptController} prompts
 * @property {Tools} tools
 * @property {Cursor} cursor
 * @property {DisplaySettings} settings
 */

export class SceneRenderer {
  #parts;
  /** @type {Layers | null} */
  #current = null;

  /** @param {SceneParts} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /**
   * Start with an image of another size; null: no image.
   * @param {{height: number, width: number} | null} size
   */
  open(size) {
    this.#current = size && new Layers(size.height, size.width);
  }

  /** Redraw the current mask, and the scene. */
  updateCurrentMask() {
    const { bits, size } = this.#parts.editor;
    this.#current?.redrawSingle(bits && cropMask(bits, size.height, size.width), CURRENT_COLOR);
    this.update();
  }

  /** Redraw the scene. */
  update() {
    if (!this.#current) return;
    const { cursor, editor, masks, preview, prompts, settings, tools, viewport } = this.#parts;
    const { opacity, style, hidden } = settings.values;
    viewport.setScene({
      masks: masks.layers,
      marked: masks.markedOutline,
      current: editor.bits ? this.#current : null,
      preview: preview.layers,
      points: prompts.points,
      hoveredPoint: prompts.hoveredPoint,
      box: prompts.box,
      cursor: cursor.position,
      showCross: cursor.byKeyboard,
      tool: tools.current,
      brushRadius: tools.radius,
      opacity,
      style,
      hidden,
    });
  }
}
