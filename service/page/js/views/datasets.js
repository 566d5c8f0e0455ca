/** The view Datasets. */
import { h } from "../dom.js";
import { empty } from "../placeholders.js";

/** @param {import("../router.js").Route} _route @returns {import("../main.js").View} */
export function render(_route) {
  return {
    title: "Datasets",
    node: h("div", { class: "page" }, h("h1", {}, "Datasets"), empty("This view is being written.")),
  };
}
