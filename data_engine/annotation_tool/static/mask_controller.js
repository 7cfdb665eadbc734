// Committing, discarding, editing, accepting and deleting masks, and undoing that.
import { area } from "./rle.js";

/** @import { ListedMask, Task } from "./types.js" */
/** @import { MaskEditor } from "./mask_editor.js" */
/** @import { MaskList } from "./mask_list.js" */
/** @import { Outbox } from "./outbox.js" */
/** @import { PromptController } from "./prompt_controller.js" */
/** @import { StatusBar } from "./status_bar.js" */
/** @import { WorkTimer } from "./work_timer.js" */

/**
 * @typedef {object} MaskParts
 * @property {MaskEditor} editor
 * @property {MaskList} masks
 * @property {PromptController} prompts
 * @property {Outbox} outbox
 * @property {WorkTimer} timer
 * @property {StatusBar} status
 */

/** @typedef {{kind: "commit", id: string} | {kind: "delete", mask: ListedMask}} UndoEntry */

export class MaskController {
  #parts;
  #checkpoint;
  /** @type {Task | null} */
  #task = null;
  /** @type {UndoEntry[]} */
  #undoStack = [];

  /**
   * @param {MaskParts} parts
   * @param {string} checkpoint Hash of the model's checkpoint, "" without a model.
   */
  constructor(parts, checkpoint) {
    this.#parts = parts;
    this.#checkpoint = checkpoint;
  }

  /**
   * Start with another image.
   * @param {Task | null} task
   */
  open(task) {
    this.#task = task;
    this.#undoStack = [];
  }

  get canUndo() {
    const { editor } = this.#parts;
    return editor.canUndo || !editor.isEmpty || this.#undoStack.length > 0;
  }

  /** Commit the current mask, once its prediction is there. */
  async commit() {
    const { editor, masks, prompts, status, timer } = this.#parts;
    await prompts.settled();
    const content = editor.toCommit(this.#checkpoint);
    if (!content) return status.showNote(editor.isEmpty ? "There is no mask to commit." : "The mask is empty.");
    const previous = editor.editing;
    const id = previous?.mask ?? crypto.randomUUID();
    this.#send({ kind: "put", mask: id, ...content, ...timer.takeMaskTime() });
    this.#undoStack.push({ kind: "commit", id });
    masks.hide(null);
    masks.put(
      masks.createMask({
        ...content,
        mask: id,
        number: previous?.number ?? masks.nextNumber,
        name: previous?.name ?? "",
        area: editor.bits ? area(editor.bits) : 0,
        wasProposed: previous ? previous.wasProposed || previous.origin === "proposed" : false,
      }),
    );
    editor.clear();
  }

  /** Discard the current mask. */
  discard() {
    const { editor, masks, timer } = this.#parts;
    if (editor.isEmpty && !editor.editing) return;
    timer.start();
    masks.hide(null);
    editor.clear();
  }

  /** Undo a step of the current mask, else discard it, else undo the last commit or deletion. */
  undo() {
    const { editor, masks, prompts, status, timer } = this.#parts;
    prompts.invalidate();
    if (editor.undo()) return;
    if (!editor.isEmpty) return this.discard();
    const last = this.#undoStack.pop();
    if (!last) return status.showNote("There is nothing to undo.");
    if (last.kind === "commit") {
      const mask = masks.find(last.id);
      if (mask) this.edit(mask);
      else this.undo();
      return;
    }
    const { rle, origin, predicted_iou, prompts: points, mask } = last.mask;
    const restored = origin === "proposed" ? "accepted" : origin;
    this.#send({ kind: "put", mask, rle, origin: restored, predicted_iou, prompts: points, ...timer.takeMaskTime() });
    masks.put(masks.createMask({ ...last.mask, origin: restored }));
  }

  /**
   * Edit a listed mask.
   * @param {ListedMask | null} mask
   */
  edit(mask) {
    const { editor, masks, status, timer } = this.#parts;
    if (!mask) return status.showNote("There is no mask here.");
    if (!editor.isEmpty) return status.showNote("Commit the current mask first (F), or discard it (Esc).");
    timer.start();
    masks.hide(mask);
    editor.editMask(mask);
  }

  /** @param {ListedMask} mask */
  delete(mask) {
    this.#send({ kind: "delete", mask: mask.mask });
    this.#undoStack.push({ kind: "delete", mask });
    this.#parts.masks.remove(mask);
  }

  /**
   * Accept proposed masks as they are.
   * @param {ListedMask[]} proposals
   */
  accept(proposals) {
    for (const { mask, rle, predicted_iou } of proposals) {
      this.#send({ kind: "put", mask, rle, predicted_iou, origin: "accepted", ...this.#parts.timer.takeMaskTime() });
    }
    this.#parts.masks.setAccepted(proposals);
  }

  /** @param {{kind: string, mask: string} & Record<string, unknown>} message */
  #send(message) {
    if (this.#task) this.#parts.outbox.put({ task: this.#task.id, ...message });
  }
}
