// The dialog that asks for a reason: one of a list, by click or number key, or free text.
import { $, byId, targetMatches, textElement } from "./dom.js";

/**
 * Open the dialog and call `onReason` with the reason that was given; nothing is called if the dialog is cancelled.
 * @param {string} title
 * @param {string[]} reasons
 * @param {(reason: string) => void} onReason
 */
export function askReason(title, reasons, onReason) {
  const dialog = byId("reason", HTMLDialogElement);
  const input = byId("reason-text", HTMLInputElement);
  $("reason-title").textContent = title;
  input.value = "";
  /** @param {string} reason */
  const finish = (reason) => {
    dialog.close("");
    onReason(reason);
  };
  $("reasons").replaceChildren(
    ...reasons.map((reason, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(reason, textElement("kbd", String(i + 1)));
      button.addEventListener("click", () => finish(reason));
      return button;
    }),
  );
  dialog.onkeydown = (event) => {
    const reason = reasons[Number(event.key) - 1];
    if (reason && (event.target !== input || !input.value)) {
      event.preventDefault();
      finish(reason);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (targetMatches(event, 'button[value=""], #reasons button')) /** @type {HTMLElement} */ (event.target).click();
      else $("reason-ok").click();
    }
  };
  $("reason-ok").onclick = (event) => {
    event.preventDefault();
    const reason = input.value.trim();
    if (reason) finish(reason);
    else input.focus();
  };
  dialog.showModal();
}
