// What keys and buttons do: one function for each action name.
import { byId, clamp } from "./dom.js";
import { HIT_DISTANCE } from "./pointer_input.js";
import { askReason } from "./reason_dialog.js";

/** @import { KeyPress, ListedMask } from "./types.js" */
/** @import { Cursor } from "./cursor.js" */
/** @import { DisplaySettings } from "./display_settings.js" */
/** @import { MaskController } from "./mask_controller.js" */
/** @import { MaskEditor } from "./mask_editor.js" */
/** @import { MaskList } from "./mask_list.js" */
/** @import { Preview } from "./preview.js" */
/** @import { PromptController } from "./prompt_controller.js" */
/** @import { StatusBar } from "./status_bar.js" */
/** @import { TaskController } from "./task_controller.js" */
/** @import { Tools } from "./tools.js" */
/** @import { Viewport } from "./viewport.js" */

const SEND_BACK_REASONS = ["masks missing", "edges not clean", "not objects"];
const REPEATABLE = new Set(["move", "brushSize", "opacity", "zoom", "undo", "redo", "clickHere"]);
const STEP = 12; // screen pixels of the cross per key press, 1 with Shift
/** @type {Record<string, [number, number]>} */
const DIRECTIONS = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] };
/** @type {Record<string, string>} */
const TOOL_OF_KEY = { 1: "prompt", 2: "brush", 3: "eraser" };

/**
 * @typedef {object} ActionParts
 * @property {Cursor} cursor
 * @property {DisplaySettings} settings
 * @property {MaskController} maskController
 * @property {MaskEditor} editor
 * @property {MaskList} masks
 * @property {Preview} preview
 * @property {PromptController} prompts
 * @property {string[]} skipReasons
 * @property {StatusBar} status
 * @property {TaskController} tasks
 * @property {Tools} tools
 * @property {Viewport} viewport
 */

export class Actions {
  #parts;
  /** @type {Record<string, (press: KeyPress) => unknown>} */
  #actions;

  /** @param {ActionParts} parts */
  constructor(parts) {
    this.#parts = parts;
    const { cursor, editor, maskController, settings, skipReasons, tasks, tools, viewport } = parts;
    this.#actions = {
      help: () => byId("help", HTMLDialogElement).showModal(),
      commit: () => maskController.commit(),
      discard: () => maskController.discard(),
      undo: () => maskController.undo(),
      redo: () => editor.redo(),
      fit: () => viewport.fit(),
      cycle: ({ shift }) => editor.cycle(shift ? -1 : 1),
      tool: ({ key }) => tools.select(TOOL_OF_KEY[key]),
      edit: () => maskController.edit(this.#maskAtCursor()),
      remove: () => this.#remove(),
      accept: ({ shift }) => (shift ? maskController.accept(parts.masks.proposals) : this.#accept()),
      acceptAll: () => maskController.accept(parts.masks.proposals),
      reject: () => this.#reject(),
      nextProposal: () => this.#nextProposal(),
      hide: () => settings.set({ hidden: !settings.values.hidden }),
      style: () => settings.nextStyle(),
      opacity: ({ key }) => settings.set({ opacity: clamp(settings.values.opacity + (key === "," ? -0.1 : 0.1), 1) }),
      preview: () => this.#togglePreview(),
      brushSize: ({ key }) => tools.setRadius(tools.radius * (key === "[" ? 1 / 1.2 : 1.2)),
      zoom: ({ key }) => this.#zoom(key),
      move: ({ key, shift }) => this.#moveCross(key, shift),
      clickHere: () => this.#clickHere(1),
      removeHere: () => this.#clickHere(0),
      corner: () => parts.prompts.setCorner(cursor.position),
      done: () => this.#done(),
      skip: () => askReason("Skip this image: reason", skipReasons, (reason) => tasks.skip(reason)),
      previous: () => tasks.previous(),
      approve: () => tasks.review(true),
      correct: () => tasks.correct(),
      sendBack: () => askReason("Send back: reason", SEND_BACK_REASONS, (note) => tasks.review(false, note)),
    };
  }

  /**
   * Run an action, unless a task is being opened or none is open.
   * @param {string} name
   * @param {Partial<KeyPress>} press
   */
  run(name, press = {}) {
    const { tasks } = this.#parts;
    if (name !== "help" && (tasks.busy || (!tasks.task && name !== "previous"))) return;
    if (press.repeat && !REPEATABLE.has(name)) return;
    this.#actions[name]?.({ key: "", shift: false, repeat: false, ...press });
  }

  #maskAtCursor() {
    return this.#parts.masks.markedOrAt(this.#parts.cursor.position);
  }

  #remove() {
    const { cursor, editor, maskController, prompts, status, viewport } = this.#parts;
    const point = prompts.pointNear(cursor.position, HIT_DISTANCE / viewport.scale);
    const mask = this.#maskAtCursor();
    if (point) prompts.deletePoint(point);
    else if (editor.isEmpty && mask) maskController.delete(mask);
    else status.showNote("There is neither a point nor a mask here.");
  }

  #accept() {
    this.#withProposal((mask) => this.#parts.maskController.accept([mask]));
  }

  #reject() {
    this.#withProposal((mask) => this.#parts.maskController.delete(mask));
  }

  /**
   * Accept or reject the proposed mask at the cursor, and mark the next one if it was marked; without one, only mark the next.
   * @param {(mask: ListedMask) => void} decide
   */
  #withProposal(decide) {
    const { masks } = this.#parts;
    const mask = this.#maskAtCursor();
    if (mask?.origin !== "proposed") return this.#nextProposal();
    const next = masks.marked === mask ? masks.proposalAfter(mask) : null;
    decide(mask);
    if (next) masks.mark(next);
  }

  #nextProposal() {
    const { masks, status } = this.#parts;
    if (!masks.proposals.length) return status.showNote("No proposed mask is left.");
    masks.mark(masks.proposalAfter(masks.marked) ?? masks.marked);
  }

  #togglePreview() {
    const { preview, settings, status } = this.#parts;
    settings.set({ preview: !settings.values.preview });
    preview.clear();
    status.showNote(`Preview ${settings.values.preview ? "on" : "off"}.`);
  }

  /** @param {string} key */
  #zoom(key) {
    const { cursor, viewport } = this.#parts;
    const { x, y } = viewport.toScreen(cursor.position.x, cursor.position.y);
    if (key === "0") viewport.fit();
    else viewport.zoom(key === "-" ? 1 / 1.25 : 1.25, x, y);
  }

  /**
   * @param {string} key
   * @param {boolean} finely
   */
  #moveCross(key, finely) {
    const { cursor, preview, prompts, tasks, viewport } = this.#parts;
    if (!tasks.task) return;
    const step = (finely ? 1 : STEP) / viewport.scale;
    const [dx, dy] = DIRECTIONS[key];
    const x = clamp(cursor.position.x + dx * step, tasks.task.width - 1e-3);
    const y = clamp(cursor.position.y + dy * step, tasks.task.height - 1e-3);
    prompts.followCursor({ x, y });
    prompts.hover({ x, y }, HIT_DISTANCE / viewport.scale);
    preview.update({ x, y }, prompts.isInside({ x, y }));
    cursor.moveTo({ x, y }, true);
  }

  /** @param {number} label 1: foreground or paint, 0: background or erase. */
  #clickHere(label) {
    const { cursor, prompts, tools } = this.#parts;
    if (!tools.isBrush) return prompts.addPoint(cursor.position, label);
    tools.beginStroke(cursor.position, !label);
    tools.endStroke();
  }

  /** Mark the image as done; a mask that is being made belongs to it and is committed first. */
  async #done() {
    const { editor, maskController, tasks } = this.#parts;
    if (!editor.isEmpty) await maskController.commit();
    await tasks.done();
  }
}
