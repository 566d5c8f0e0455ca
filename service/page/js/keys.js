/**
 * Keys of the open view and of every view; `?` lists them. None works while one writes in a field, except Escape.
 *
 * @typedef {object} Key
 * @property {string | string[]} key as `KeyboardEvent.key`; several keys of one meaning
 * @property {string} what for the list
 * @property {(event: KeyboardEvent) => void} run
 * @property {(event: KeyboardEvent) => boolean} [unless] leaves the key to the browser
 */
import { h } from "./dom.js";
import { openDialog } from "./overlays.js";

/** @type {Key[]} */
let ofView = [];
/** @type {Key[]} */
const always = [];
/** @type {((key: string) => void) | null} */
let second = null;

/** @type {Record<string, string>} */
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", " ": "Space" };
const FIELDS = "input:not([type=range],[type=checkbox],[type=radio]), textarea, select, [contenteditable]";

/**
 * Set the keys of the open view.
 * @param {Key[]} keys
 */
export function bindKeys(keys) {
  ofView = keys;
}

/**
 * Add keys that work everywhere.
 * @param {Key[]} keys
 */
export function bindAlways(keys) {
  always.push(...keys);
}

/**
 * Give the next key to a function, within two seconds.
 * @param {(key: string) => void} callback
 */
export function takeNextKey(callback) {
  second = callback;
  setTimeout(() => {
    if (second === callback) second = null;
  }, 2000);
}

/** Show all keys that work now. */
export function showKeys() {
  /** @param {string} title @param {Key[]} keys */
  const list = (title, keys) => keys.length > 0 && h("section", {}, h("h3", {}, title), h("dl", {}, keys.map(row)));
  openDialog("Keys", h("div", { class: "key-lists" }, list("This view", ofView), list("Everywhere", always)));
}

/** @param {Key} entry */
function row({ key, what }) {
  const names = [key].flat().map((name) => h("kbd", {}, NAMES[name] ?? name));
  return h("div", { class: "key-row" }, h("dt", {}, names), h("dd", {}, what));
}

addEventListener("keydown", (event) => {
  if (
    event.defaultPrevented ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    document.querySelector("dialog[open]")
  )
    return;
  const isWriting = event.target instanceof Element && event.target.matches(FIELDS);
  if (isWriting && event.key !== "Escape") return;
  if (second && event.key.length === 1) {
    const take = second;
    second = null;
    event.preventDefault();
    take(event.key);
    return;
  }
  const entry = [...ofView, ...always].find(({ key, unless }) => [key].flat().includes(event.key) && !unless?.(event));
  if (!entry) return;
  event.preventDefault();
  entry.run(event);
});
