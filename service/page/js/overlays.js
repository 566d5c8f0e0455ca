/** What appears above a view: toasts, dialogs, and words for those who listen. Errors belong where they happen. */
import { h } from "./dom.js";

const TOAST_MS = 6000;

/**
 * Say what happened, or what happens now. Never for errors.
 * @param {...import("./dom.js").Child} content
 */
export function toast(...content) {
  const node = h("div", { class: "toast" }, ...content);
  document.getElementById("toasts")?.append(node);
  setTimeout(() => node.remove(), TOAST_MS);
}

/**
 * Say something to those who listen only.
 * @param {string} text
 */
export function announce(text) {
  const node = h("div", { class: "sr" }, text);
  document.getElementById("toasts")?.append(node);
  setTimeout(() => node.remove(), TOAST_MS);
}

/**
 * Open a dialog with a button that closes it.
 * @param {string} title
 * @param {import("./dom.js").Child} content
 * @param {import("./dom.js").Child} [actions] buttons with `value`, beside "Close"
 * @returns {Promise<string>} value of the button; "" if it was closed otherwise
 */
export function openDialog(title, content, actions) {
  const close = h("button", { class: "btn", value: "" }, actions ? "Cancel" : "Close");
  const dialog = h(
    "dialog",
    { class: "dialog", "aria-label": title },
    h("h2", {}, title),
    content,
    h("form", { method: "dialog", class: "dialog-end" }, actions, close),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    }),
  );
}

/**
 * Ask before something is lost: "Delete … and free 293 MiB?"
 * @param {string} title
 * @param {import("./dom.js").Child} content
 * @param {string} verb on the button
 * @returns {Promise<boolean>}
 */
export async function confirmed(title, content, verb) {
  return (await openDialog(title, content, h("button", { class: "btn primary", value: "yes" }, verb))) === "yes";
}
