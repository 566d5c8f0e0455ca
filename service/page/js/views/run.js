/** The view Run. */
import { h } from "../dom.js";
import { empty } from "../placeholders.js";

/** @param {import("../router.js").Route} _route @returns {import("../main.js").View} */
export function render(_route) {
  return { title: "Run", node: h("div", { class: "page" }, h("h1", {}, "Run"), empty("This view is being written.")) };
}
