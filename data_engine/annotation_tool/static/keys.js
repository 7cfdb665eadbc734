// Every action has a key; the same list makes the keys work and fills the help. Letters are what is printed on the key.
export const KEYS = [
  ["Click left", null, "Add to the object"],
  ["Click right, Shift+click", null, "Remove from it; on a point: delete the point"],
  ["Drag", null, "Box; from a point: move the point"],
  ["Wheel, middle drag", null, "Zoom, pan (also Space+drag)"],
  ["Arrows", ["arrowleft", "arrowright", "arrowup", "arrowdown"], "Move the cross (Shift: finely)", "move"],
  ["Enter", ["enter"], "Add at the cross; brush: a dab", "clickHere"],
  ["Shift Enter", ["shift+enter"], "Remove at the cross", "removeHere"],
  ["B", ["b"], "Box: first corner, then the other", "corner"],
  ["X, Delete", ["x", "delete", "backspace"], "Delete the point or mask under the cross", "remove"],
  ["C, Shift C", ["c", "shift+c"], "Next, previous of the three masks of a click", "cycle"],
  ["F, N", ["f", "n"], "Commit the object, begin the next", "commit"],
  ["Esc", ["escape"], "Drop the object", "drop"],
  ["Z, Ctrl Z", ["z", "ctrl+z", "meta+z"], "Undo a step, then the last commit", "undo"],
  ["Y, Ctrl Shift Z", ["y", "ctrl+y", "ctrl+shift+z", "meta+shift+z"], "Redo", "redo"],
  ["E", ["e"], "Change the mask under the cross", "edit"],
  ["1, 2, 3", ["1", "2", "3"], "Click, brush, eraser", "tool"],
  ["[, ]", ["[", "]"], "Smaller, larger brush (also Alt+wheel)", "brushSize"],
  ["Tab", null, "Next control; in the list of masks, Enter changes one"],
  ["A, Shift A", ["a", "shift+a"], "Accept the proposed mask, all that are left", "accept"],
  ["R", ["r"], "Reject the proposed mask", "reject"],
  ["G", ["g"], "Go to the next proposed mask; A and R then go on to the one after", "nextProposal"],
  ["H", ["h"], "Hide the masks, show them", "hide"],
  ["O", ["o"], "Fills, outlines, both", "style"],
  ["Comma, Period", [",", "."], "Fainter, stronger fills", "opacity"],
  ["V", ["v"], "Preview under the pointer on, off", "preview"],
  ["+, −, 0", ["+", "=", "-", "0"], "Zoom in, out, fit", "zoom"],
  ["D", ["d"], "Image done, next image", "done"],
  ["S", ["s"], "Skip the image, with a reason", "skip"],
  ["P", ["p"], "Previous image", "previous"],
  ["?", ["?"], "These keys", "help"],
];

export const REVIEW_KEYS = [
  ["Y", ["y"], "Accept the image, next", "approve"],
  ["N", ["n"], "Send it back with a note", "sendBack"],
  ["E", ["e"], "Correct it: D then ends and accepts it", "correct"],
  ["Wheel, drag", null, "Zoom, pan"],
  ...KEYS.filter((row) => ["hide", "style", "opacity", "zoom", "help"].includes(row[3])),
];

// `table()` says which keys there are now.
export function listen(table, act) {
  const actionsOf = (rows) => new Map(rows.flatMap(([, names, , action]) => (names || []).map((name) => [name, action])));
  window.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.target.matches("input, button, li") && ["Enter", " ", "Tab"].includes(event.key)) return;
    if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    const key = event.key.toLowerCase();
    const held = [event.ctrlKey && "ctrl", event.metaKey && "meta", event.shiftKey && (key.length > 1 || /[a-z]/.test(key)) && "shift"];
    const name = [...held.filter(Boolean), key].join("+");
    const actions = actionsOf(table());
    const action = actions.get(name) ?? (key.startsWith("arrow") ? actions.get(key) : undefined);
    if (!action || event.altKey) return;
    event.preventDefault();
    act(action, { key, shift: event.shiftKey, repeat: event.repeat });
  });
}

export function fill(element, table) {
  element.replaceChildren();
  for (const [keys, , what] of table) {
    const cell = document.createElement("div");
    keys.split(", ").forEach((key, i) => {
      if (i) cell.append(" ");
      cell.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    });
    element.append(cell, Object.assign(document.createElement("span"), { textContent: what }));
  }
}
