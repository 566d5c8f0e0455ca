/** Heads per layer as columns of dots. Each column is a spin button: a click sets the nearest count that fits, arrows go one on. */
import { h, replace, svg } from "../../dom.js";

const WIDTH = 252; // pixels for all columns
const HEIGHT = 100;
const USUAL = 16; // counts up to here are offered, more only where the list has more
const DENSE_BELOW = 18; // pixels of a column: too narrow for numbers

/**
 * Make the editor.
 * @param {(heads: number[]) => void} onChange
 * @returns {{node: HTMLElement, draw: (shape: {heads: number[], width: number, headDim: number | null, misfits: Set<number>}) => void}}
 */
export function headEditor(onChange) {
  const columns = h("div", { class: "columns" });
  const names = h("div", { class: "column-names", "aria-hidden": true }, h("span", {}, "heads"), h("span", {}, "size"));
  const node = h(
    "div",
    { class: "head-editor", role: "group", "aria-label": "Heads per layer, as columns" },
    names,
    columns,
  );

  /** @type {(shape: {heads: number[], width: number, headDim: number | null, misfits: Set<number>}) => void} */
  const draw = ({ heads, width, headDim, misfits }) => {
    const counts = fitting(heads, width, headDim);
    const most = Math.max(...heads.filter(Number.isFinite), Math.min(8, counts.at(-1) ?? 1), 1);
    const shown = Math.min(most, 64); // a slip of the finger is no reason for a million dots
    const pitch = { x: Math.min(30, WIDTH / heads.length), y: Math.min(12, HEIGHT / shown) };
    const focused = [...columns.children].indexOf(/** @type {Element} */ (document.activeElement));
    const choose = (/** @type {number} */ layer, /** @type {number} */ count) => onChange(heads.with(layer, count));
    node.classList.toggle("dense", pitch.x < DENSE_BELOW);
    replace(
      columns,
      heads.map((n, layer) => {
        const size = misfits.has(layer) ? "–" : (headDim ?? width / n);
        return h(
          "div",
          {
            class: misfits.has(layer) ? "column misfit" : "column",
            role: "spinbutton",
            tabindex: 0,
            "aria-label": `Heads of layer ${layer}`,
            "aria-valuenow": Number.isFinite(n) ? n : null,
            "aria-valuemin": 1,
            "aria-valuemax": counts.at(-1),
            "aria-valuetext": `${n} heads of size ${size}`,
            "aria-invalid": String(misfits.has(layer)),
            onclick: (/** @type {MouseEvent} */ event) => {
              const top = /** @type {Element} */ (event.currentTarget).getBoundingClientRect().top;
              choose(layer, nearest(counts, Math.max(1, Math.ceil((event.clientY - top - 4) / pitch.y))));
              /** @type {HTMLElement} */ (columns.children[layer]).focus();
            },
            onkeydown: (/** @type {KeyboardEvent} */ event) => {
              const next = byKey(event.key, counts, n);
              if (next == null) return;
              event.preventDefault();
              event.stopPropagation();
              choose(layer, next);
            },
          },
          dots(Number.isFinite(n) ? n : 0, shown, pitch),
          h("span", { class: "column-heads" }, Number.isFinite(n) ? n : "?"),
          h("span", { class: "column-size" }, size),
        );
      }),
    );
    if (focused >= 0) /** @type {HTMLElement | undefined} */ (columns.children[focused])?.focus();
  };
  return { node, draw };
}

/** @param {number} n @param {number} most @param {{x: number, y: number}} pitch */
function dots(n, most, pitch) {
  const r = Math.min(pitch.x, pitch.y) * 0.34;
  const at = (/** @type {number} */ i) => `M${pitch.x / 2} ${(i + 0.5) * pitch.y}h0`;
  const places = Array.from({ length: most }, (_, i) => i);
  return svg(
    "svg",
    { width: pitch.x, height: most * pitch.y, "aria-hidden": true },
    svg("path", { class: "off", d: places.slice(n).map(at).join(""), "stroke-width": Math.min(2, r) }),
    svg("path", { class: "on", d: places.slice(0, n).map(at).join(""), "stroke-width": 2 * r }),
  );
}

/** Counts that may be chosen, ascending. @param {number[]} heads @param {number} width @param {number | null} headDim */
function fitting(heads, width, headDim) {
  const most = Math.min(Math.max(USUAL, ...heads.filter(Number.isFinite)), width || USUAL);
  return Array.from({ length: most }, (_, i) => i + 1).filter((n) => headDim || width % n === 0);
}

/** @param {number[]} counts @param {number} n */
const nearest = (counts, n) =>
  counts.reduce((best, count) => (Math.abs(count - n) < Math.abs(best - n) ? count : best), counts[0]);

/** @param {string} key @param {number[]} counts @param {number} n */
function byKey(key, counts, n) {
  if (key === "ArrowDown") return counts.find((count) => count > n) ?? null; // columns hang: down is more
  if (key === "ArrowUp") return counts.findLast((count) => count < n) ?? null;
  return { Home: counts[0], End: counts.at(-1) }[key] ?? null;
}
