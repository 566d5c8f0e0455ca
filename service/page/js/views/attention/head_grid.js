/**
 * All heads as thumbnails: the ragged grid, one column a layer, or in the order of a metric. A thumbnail far outside the
 * window is drawn when it comes near.
 *
 * @typedef {import("./attention_replies.js").Captured} Captured
 * @typedef {{layer: number, head: number}} Place
 */
import { h, replace, set } from "../../dom.js";
import { plural, short } from "../../format.js";
import { drawThumbnail } from "../../parts/matrix.js";

const NEAR = "400px";

/** Metrics of a head in one text: the name of each in the API, and on the page. @type {Record<string, string>} */
export const METRICS = {
  entropy_relative: "Entropy",
  entropy: "Entropy, bits",
  mean_distance: "Distance",
  distance_variance: "Distance, variance",
  previous: "Previous token",
  diagonal: "Self",
  local: "Local",
  long_range: "Long range",
  vertical: "One key",
  horizontal: "Widest query",
  sparsity: "Sparsity",
  sink: "First token",
  sink_norm: "First token, norm",
  output_norm: "Output norm",
};

/** Number of a head. @param {Captured | null} captured @param {Place} place @param {string} metric */
export function numberOf(captured, { layer, head }, metric) {
  return captured?.reply.statistics[layer].heads[head][metric] ?? null;
}

/** All heads of a model. @param {number[]} heads @returns {Place[]} */
export const everyHead = (heads) =>
  heads.flatMap((n, layer) => Array.from({ length: n }, (_, head) => ({ layer, head })));

/**
 * Make the grid.
 * @param {number[]} heads of each layer
 * @param {(place: Place) => void} onChoose
 */
export function headGrid(heads, onChoose) {
  const node = h("div", { class: "head-grid" });
  const cells = everyHead(heads).map((place) => {
    const canvas = h("canvas", { "aria-hidden": true });
    const [name, value] = [h("span", { class: "head-name" }), h("span", { class: "head-value" })];
    const onclick = () => onChoose(place);
    const button = h("button", { type: "button", class: "head", onclick }, canvas, name, value);
    return { place, canvas, name, value, button, isNear: false, isOld: true };
  });
  const byButton = new Map(cells.map((cell) => [/** @type {Element} */ (cell.button), cell]));
  /** @type {Captured | null} */
  let shown = null;
  let most = (/** @type {Place} */ _) => 1;
  let order = "";

  /** @param {typeof cells[number]} cell */
  const draw = (cell) => {
    cell.isOld = false;
    const { layer, head } = cell.place;
    if (shown) drawThumbnail(cell.canvas, { weights: shown.weights, layer, place: head, most: most(cell.place) });
    else cell.canvas.width = cell.canvas.height = 1;
  };
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const cell = byButton.get(target);
        if (!cell) continue;
        cell.isNear = isIntersecting;
        if (isIntersecting && cell.isOld) draw(cell);
      }
    },
    { rootMargin: NEAR },
  );
  for (const { button } of cells) watcher.observe(button);

  const layers = heads.map((n, layer) => {
    const title = h("b", {}, h("i", {}, "Layer "), String(layer));
    return h("div", { class: "layer-name" }, title, h("span", {}, plural(n, "head")));
  });
  /** @param {boolean} isRanked @param {string} metric @param {boolean} isAscending */
  const arrange = (isRanked, metric, isAscending) => {
    const value = (/** @type {typeof cells[number]} */ { place }) => numberOf(shown, place, metric);
    const ranked = [...cells].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x == null || y == null ? Number(x == null) - Number(y == null) : (y - x) * (isAscending ? -1 : 1);
    });
    const now = isRanked ? ranked.map(({ place }) => `${place.layer}.${place.head}`).join(" ") : "layers";
    if (now === order) return;
    order = now;
    const focused = document.activeElement;
    node.classList.toggle("ranked", isRanked);
    const column = (/** @type {number} */ layer) =>
      h(
        "div",
        { class: "layer", role: "group", "aria-label": `Layer ${layer}` },
        layers[layer],
        cells.filter(({ place }) => place.layer === layer).map(({ button }) => button),
      );
    replace(node, isRanked ? ranked.map(({ button }) => button) : heads.map((_, layer) => column(layer)));
    if (focused && byButton.has(focused)) /** @type {HTMLElement} */ (focused).focus();
  };
  return {
    node,
    leave: () => watcher.disconnect(),
    /**
     * Show weights and numbers.
     * @param {Captured | null} captured null: they are not known
     * @param {{mostOf: (place: Place) => number, isRanked: boolean, metric: string, isAscending: boolean}} how mostOf: the
     *   weight of a head with the full colour
     */
    update(captured, { mostOf, isRanked, metric, isAscending }) {
      shown = captured;
      most = mostOf;
      arrange(isRanked, metric, isAscending);
      for (const cell of cells) {
        const { layer, head } = cell.place;
        const number = short(numberOf(shown, cell.place, metric));
        cell.name.textContent = isRanked ? `${layer}.${head}` : String(head);
        cell.value.textContent = number;
        set(cell.button, { "aria-label": `layer ${layer}, head ${head}, ${METRICS[metric]} ${number}` });
        cell.isOld = true;
        if (cell.isNear) draw(cell);
      }
    },
    /** Frame one head. @param {Place} chosen */
    choose(chosen) {
      const hadFocus = node.contains(document.activeElement);
      for (const { place, button } of cells) {
        const isChosen = place.layer === chosen.layer && place.head === chosen.head;
        set(button, { "aria-pressed": String(isChosen), tabindex: isChosen ? 0 : -1 });
        if (isChosen && hadFocus) button.focus();
      }
    },
  };
}
