/**
 * One head as a large matrix. The corner that causal attention leaves free holds what the pointer reads and the scale.
 *
 * @typedef {import("../../parts/matrix.js").Head} Head
 * @typedef {import("../../parts/matrix.js").Mark} Mark
 */
import { h, oncePerFrame, replace, set } from "../../dom.js";
import { token, weight } from "../../format.js";
import { weightRamp } from "../../palette.js";
import { cellAt, cellSize, drawCells, drawFrames } from "../../parts/matrix.js";

const PHONE = 720;
const LEAST_HEIGHT = 700; // pixels of a window that the matrix counts with
const ABOVE = 268; // pixels of the bar, the head of the view and the text
const MOST_CELL = 16; // outside full screen
const SHARES = [0, 0.06, 0.25, 1];

/** @param {number[]} values */
const indexOfMost = (values) => values.indexOf(Math.max(...values));

/**
 * Make the matrix.
 * @param {object} on
 * @param {(mark: Mark | null) => void} on.point below the pointer, or reached by arrows
 * @param {(query: number | null) => void} on.pin a click or Enter; null: Escape lets go
 */
export function matrixView(on) {
  const [cells, frames] = [h("canvas", { "aria-hidden": true }), h("canvas", { class: "frames", "aria-hidden": true })];
  const box = h(
    "div",
    { class: "matrix", tabindex: 0, role: "application", "aria-roledescription": "heat map" },
    cells,
    frames,
  );
  const spoken = h("p", { class: "sr", "aria-live": "polite" });
  const [reading, scale, trouble] = [h("p", { class: "reading-lines" }), h("div"), h("div", { class: "hidden" })];
  const legend = h("div", { class: "matrix-legend" }, reading, scale);
  const node = h("div", { class: "matrix-box" }, trouble, box, legend, spoken);
  /** @type {Head | null} */
  let head = null;
  let cell = 0;
  /** @type {Mark} */
  let mark = { query: null, key: null };

  const frame = oncePerFrame(() => {
    if (head) drawFrames(frames, head.weights, { cell, mark, isAlone: true });
  });
  const fit = () => {
    if (!head) return;
    const isFull = document.fullscreenElement === node;
    const isWide = innerWidth > PHONE;
    const width = isFull ? innerWidth - 48 : node.clientWidth;
    const height = isFull ? innerHeight - 48 : isWide ? Math.max(innerHeight, LEAST_HEIGHT) - ABOVE : width;
    cell = Math.min(cellSize(head.weights.size, width, height), isFull ? Number.POSITIVE_INFINITY : MOST_CELL);
    drawCells(cells, head, cell);
    frame();
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!head || (!by && event.key !== "Enter")) return;
    event.preventDefault();
    event.stopPropagation();
    if (!by) return on.pin(mark.query);
    const query = Math.max(0, Math.min(head.weights.size - 1, (mark.query ?? 0) + by[0]));
    on.point({ query, key: Math.max(0, Math.min(query, (mark.key ?? 0) + by[1])) });
    spoken.textContent = reading.textContent;
  };
  const below = (/** @type {MouseEvent} */ event) => head && cellAt(event, head.weights, cell);
  set(box, { onkeydown: move, onblur: () => on.point(null) });
  set(frames, {
    onpointermove: (/** @type {PointerEvent} */ event) => on.point(below(event)),
    onpointerleave: () => on.point(null),
    onclick: (/** @type {MouseEvent} */ event) => on.pin(below(event)?.query ?? null),
  });
  const observer = new ResizeObserver(fit);
  observer.observe(node);
  addEventListener("resize", fit);
  return {
    node,
    draw: fit,
    leave() {
      observer.disconnect();
      removeEventListener("resize", fit);
    },
    toggleFullScreen: () => (document.fullscreenElement ? document.exitFullscreen() : node.requestFullscreen?.()),
    /**
     * Show a head.
     * @param {Head} next
     * @param {{name: string, isShared: boolean}} how isShared: whether all heads have this scale
     */
    show(next, { name, isShared }) {
      head = next;
      const { size } = next.weights;
      set(box, { "aria-label": `Weights of ${name}: ${size} queries by ${size} keys. Arrow keys move.` });
      node.classList.remove("is-waiting", "has-failed");
      replace(scale, scaleOf(next.most), h("p", { class: "faint" }, isShared ? SHARED : OWN));
      trouble.classList.add("hidden");
      fit();
    },
    /** Say that another picture is asked for; the present one fades if it takes long. */
    wait: () => node.classList.add("is-waiting"),
    /** Show why there is no picture. @param {Node} content */
    fail(content) {
      head = null;
      node.classList.add("has-failed");
      trouble.classList.remove("hidden");
      replace(trouble, content);
    },
    /** Frame a query and a key, and read them. @param {Mark} next */
    mark(next) {
      mark = next;
      replace(reading, head ? readingOf(head, next) : null);
      frame();
    },
  };
}

const SHARED = "weight, 0 to 1 for every head";
const OWN = "weight, up to this head's largest";

/** @param {number} most */
function scaleOf(most) {
  const bar = h("canvas", { width: 256, height: 1, "aria-hidden": true });
  const context = /** @type {CanvasRenderingContext2D} */ (bar.getContext("2d"));
  const ramp = weightRamp();
  for (let level = 0; level < 256; level++) {
    context.fillStyle = `rgb(${ramp.subarray(3 * level, 3 * level + 3).join()})`;
    context.fillRect(level, 0, 1, 1);
  }
  const marks = SHARES.map((share) =>
    h("span", { vars: { "--x": `${Math.sqrt(share) * 100}%` } }, share ? weight(share * most) : "0"),
  );
  return h("div", { class: "weight-scale" }, bar, h("div", { class: "weight-marks" }, marks));
}

/** @param {Head} head @param {Mark} mark @returns {import("../../dom.js").Child} */
function readingOf({ weights, layer, place }, { query, key }) {
  const name = (/** @type {number} */ i) => h("b", {}, token(weights.tokens[i]));
  const line = (/** @type {number} */ p, /** @type {import("../../dom.js").Child[]} */ ...words) =>
    h("span", { class: "reading-line" }, h("span", {}, words), " ", h("strong", {}, weight(p)));
  const look = (/** @type {import("../../dom.js").Child[]} */ ...words) => h("span", { class: "look-text" }, words);
  const seen = (/** @type {import("../../dom.js").Child[]} */ ...words) => h("span", { class: "seen-text" }, words);
  if (query == null)
    return h("span", {}, "Point at a cell: its row is the ", look("query"), ", its column the ", seen("key"), ".");
  if (key != null)
    return line(weights.weight(layer, place, query, key), look(name(query)), " looks at ", seen(name(key)));
  const row = weights.row(layer, place, query);
  const column = weights.column(layer, place, query).map((p, i) => (i > query ? p : 0));
  const [most, by] = [indexOfMost(row), indexOfMost(column)];
  return [
    line(row[most], look(name(query), " looks most at "), name(most)),
    column[by] > 0 && line(column[by], seen("and is looked at most by "), name(by)),
  ];
}
