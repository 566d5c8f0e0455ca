/**
 * All heads as thumbnails: the ragged grid, one column a layer, or in the order of a metric. A thumbnail far outside the
 * window is drawn when it comes near.
 *
 * @typedef {import("./attention_replies.js").Captured} Captured
 * @typedef {{layer: number, head: number}} Place
 */
import { choices } from "../../controls.js";
import { h, replace, set } from "../../dom.js";
import { plural, short } from "../../format.js";
import { drawThumbnail } from "../../parts/matrix.js";

const NEAR = "400px";
const PHONE = 720;
const LEAST_HEIGHT = 700; // pixels of a window that the grid counts with
const ABOVE = 296; // pixels of the bar, the head of the view and the text
const GAP = 7;
const VALUE_FROM = 46; // pixels of a thumbnail that has room for its value

/** Metrics of a head in one text: the name of each in the API, and on the page. @type {Record<string, string>} */
export const METRICS = {
  entropy_relative: "Entropy",
  entropy: "Entropy, bits",
  mean_distance: "Distance",
  distance_variance: "Distance spread",
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

const FIRST_METRIC = "entropy_relative";

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
    const spoken = [h("span", { class: "sr" }), h("span", { class: "sr" })];
    const button = h(
      "button",
      { type: "button", class: "head", "data-head": `${place.layer}.${place.head}`, onclick },
      [canvas, spoken[0], name, spoken[1], value],
    );
    return { place, canvas, name, value, spoken, button, isNear: false, isOld: true };
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
    /** Make thumbnails as large as the height allows. */
    fit() {
      const rows = Math.max(...heads);
      const isWide = innerWidth > PHONE;
      const height = isWide ? Math.max(innerHeight, LEAST_HEIGHT) - ABOVE : innerHeight * 0.45;
      const most = isWide ? 88 : Math.min(72, (innerWidth - 32) / heads.length - 8);
      const side = Math.floor(Math.max(isWide ? 36 : 28, Math.min(most, height / rows - GAP)));
      node.classList.toggle("small-heads", side < VALUE_FROM);
      set(node, { vars: { "--thumb": `${side}px` } });
    },
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
        cell.name.textContent = isRanked ? `${layer}.${head}` : String(head);
        cell.spoken[0].textContent = isRanked ? "Head " : `Layer ${layer}, head `;
        cell.spoken[1].textContent = `, ${METRICS[metric]} `;
        cell.value.textContent = short(numberOf(shown, cell.place, metric));
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

/** How an address arranges the grid. @param {Record<string, string>} query */
export function arrangementOf({ arrange, order, metric }) {
  const known = METRICS[metric] ? metric : FIRST_METRIC;
  return { isRanked: arrange === "ranked", isAscending: order === "asc", metric: known };
}

/** The same for an address. @param {ReturnType<typeof arrangementOf>} arranged */
export function arrangementQuery({ isRanked, isAscending, metric }) {
  return {
    arrange: isRanked ? "ranked" : null,
    order: isRanked && isAscending ? "asc" : null,
    metric: metric === FIRST_METRIC ? null : metric,
  };
}

/**
 * Choose how the grid is arranged: by layer, or by a metric; a second click on "Ranked" turns the order.
 * @param {ReturnType<typeof arrangementOf>} now
 * @param {(changes: {isRanked?: boolean, isAscending?: boolean, metric?: string}) => void} onChange
 */
export function arrangement({ isRanked, isAscending, metric }, onChange) {
  const options = Object.entries(METRICS).map(([value, name]) => h("option", { value }, name));
  const select = h("select", { class: "field", value: metric, "aria-label": "Metric" }, options);
  set(select, { onchange: () => onChange({ metric: select.value }) });
  const ranked = () => (isRanked ? `Ranked ${isAscending ? "↑" : "↓"}` : "Ranked");
  const title = "By the metric; a second click turns the order";
  const { node } = choices(
    "Arrange",
    [
      { value: false, text: "By layer" },
      { value: true, text: ranked(), title },
    ],
    isRanked,
    (value) => {
      isAscending = value && isRanked ? !isAscending : isAscending;
      isRanked = value;
      node.lastElementChild?.replaceChildren(ranked());
      onChange({ isRanked, isAscending });
    },
  );
  return [node, h("span", { class: "check" }, "by", select)];
}
