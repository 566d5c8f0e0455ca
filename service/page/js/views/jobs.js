/** The view Jobs. */
import { h } from "../dom.js";
import { empty } from "../placeholders.js";

/** @param {import("../router.js").Route} _route @returns {import("../main.js").View} */
export function render(_route) {
  return {
    title: "Jobs",
    node: h("div", { class: "page" }, h("h1", {}, "Jobs"), empty("This view is being written.")),
  };
}
