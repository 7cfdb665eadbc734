// Keys and what they do; the same tables bind the keys and fill the help. Letters are those printed on the key.
import { dialogIsOpen, targetMatches, textElement } from "./dom.js";

/** @import { KeyPress } from "./types.js" */

/** @typedef {[label: string, keys: string[] | null, description: string, action?: string]} KeyRow */

/** @type {KeyRow[]} */
export const ANNOTATION_KEYS = [
  ["Left click", null, "Add a foreground point"],
  ["Right click, Shift+click", null, "Add a background point; on a point: delete it"],
  ["Drag", null, "Draw a box; from a point: move the point"],
  ["Wheel, middle drag", null, "Zoom, pan (also Space+drag)"],
  ["Arrows", ["arrowleft", "arrowright", "arrowup", "arrowdown"], "Move the cross (Shift: by one pixel)", "move"],
  ["Enter", ["enter"], "Foreground point at the cross; brush: paint there", "clickHere"],
  ["Shift Enter", ["shift+enter"], "Background point at the cross; brush: erase there", "removeHere"],
  ["B", ["b"], "Box: first corner at the cross, then the opposite one", "corner"],
  ["X, Delete", ["x", "delete", "backspace"], "Delete the point or mask under the cross", "remove"],
  ["C, Shift C", ["c", "shift+c"], "Next, previous of the three masks of a point", "cycle"],
  ["F, N", ["f", "n"], "Commit the mask, start the next", "commit"],
  ["Esc", ["escape"], "Discard the mask", "discard"],
  ["Z, Ctrl Z", ["z", "ctrl+z", "meta+z"], "Undo a step, then the last commit", "undo"],
  ["Y, Ctrl Shift Z", ["y", "ctrl+y", "ctrl+shift+z", "meta+shift+z"], "Redo", "redo"],
  ["E", ["e"], "Edit the mask under the cross", "edit"],
  ["1, 2, 3", ["1", "2", "3"], "Point and box, brush, eraser", "tool"],
  ["[, ]", ["[", "]"], "Smaller, larger brush (also Alt+wheel)", "brushSize"],
  ["Tab", null, "Next control; in the list of masks, Enter edits a mask"],
  ["A, Shift A", ["a", "shift+a"], "Accept the proposed mask, all remaining ones", "accept"],
  ["R", ["r"], "Reject the proposed mask", "reject"],
  ["G", ["g"], "Go to the next proposed mask; A and R then continue with the next one", "nextProposal"],
  ["H", ["h"], "Hide or show the masks", "hide"],
  ["O", ["o"], "Show fills, outlines or both", "style"],
  ["Comma, Period", [",", "."], "Less, more opaque fills", "opacity"],
  ["V", ["v"], "Preview under the pointer on or off", "preview"],
  ["+, −, 0", ["+", "=", "-", "0"], "Zoom in, zoom out, fit", "zoom"],
  ["D", ["d"], "Image done, next image", "done"],
  ["S", ["s"], "Skip the image, with a reason", "skip"],
  ["P", ["p"], "Previous image", "previous"],
  ["?", ["?"], "Show these keys", "help"],
];

/** @type {KeyRow[]} */
export const REVIEW_KEYS = [
  ["Y", ["y"], "Accept the image, next image", "approve"],
  ["N", ["n"], "Send the image back with a note", "sendBack"],
  ["E", ["e"], "Correct the image yourself; D then accepts it", "correct"],
  ["Wheel, drag", null, "Zoom, pan"],
  ...ANNOTATION_KEYS.filter((row) => ["hide", "style", "opacity", "zoom", "help"].includes(row[3] ?? "")),
];

export class KeyBindings {
  /** @type {Map<string, string>} */
  #actions = new Map();
  #onAction;

  /** @param {(action: string, press: KeyPress) => void} onAction */
  constructor(onAction) {
    this.#onAction = onAction;
    window.addEventListener("keydown", (event) => this.#handle(event));
  }

  /**
   * Bind the keys of a table and list them in the help.
   * @param {KeyRow[]} rows
   * @param {HTMLElement} help
   */
  setTable(rows, help) {
    this.#actions = new Map(rows.flatMap(([, keys, , action]) => (keys ?? []).map((key) => [key, action ?? ""])));
    help.replaceChildren();
    for (const [label, , description] of rows) {
      const cell = document.createElement("div");
      label.split(", ").forEach((key, i) => cell.append(i ? " " : "", textElement("kbd", key)));
      help.append(cell, textElement("span", description));
    }
  }

  /** @param {KeyboardEvent} event */
  #handle(event) {
    if (dialogIsOpen() || event.isComposing || event.altKey) return;
    if (targetMatches(event, "input, button, li") && ["Enter", " ", "Tab"].includes(event.key)) return;
    if (targetMatches(event, "input[type=range]") && event.key.startsWith("Arrow")) return;
    const key = event.key.toLowerCase();
    const withShift = event.shiftKey && (key.length > 1 || /[a-z]/.test(key));
    const modifiers = [event.ctrlKey ? "ctrl+" : "", event.metaKey ? "meta+" : "", withShift ? "shift+" : ""];
    const action = this.#actions.get(modifiers.join("") + key) ?? (key.startsWith("arrow") ? this.#actions.get(key) : undefined);
    if (!action) return;
    event.preventDefault();
    this.#onAction(action, { key, shift: event.shiftKey, repeat: event.repeat });
  }
}
