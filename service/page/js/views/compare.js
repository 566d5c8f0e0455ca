/** The view Compare. */
import { h } from "../dom.js";
import { empty } from "../placeholders.js";

/** @param {import("../router.js").Route} _route @returns {import("../main.js").View} */
export function render(_route) {
  return {
    title: "Compare",
    node: h("div", { class: "page" }, h("h1", {}, "Compare"), empty("This view is being written.")),
  };
}
