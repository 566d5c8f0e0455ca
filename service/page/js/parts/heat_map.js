/**
 * A table of numbers as colours: rows in groups, one column a step. The heads of a run by step are one.
 *
 * @typedef {{name: string, rows: {name: string, values: (number | null)[]}[]}} HeatGroup
 * @typedef {{group: number, row: number, column: number}} Cell
 */
import { h, oncePerFrame, set } from "../dom.js";
import { colour, onTheme, weightRamp } from "../palette.js";

const GROUP_GAP = 6;
export const ROW_PX = 19;

/**
 * Make a heat map of the width of its place.
 * @param {object} options
 * @param {string} options.label
 * @param {HeatGroup[]} options.groups
 * @param {number} options.most value of the full colour; 0 has the first one
 * @param {(cell: Cell) => string} options.describe sentence for who listens
 * @param {(cell: Cell | null) => void} options.onHover below the pointer or reached by arrows
 * @param {(cell: Cell) => void} options.onOpen a click or Enter
 * @returns {{node: HTMLElement, update: (changes: {groups?: HeatGroup[], most?: number}) => void,
 *   choose: (cell: Cell | null) => void, leave: () => void}}
 */
export function heatMap({ label, groups, most, describe, onHover, onOpen }) {
  const canvas = h("canvas", { "aria-hidden": true });
  const spoken = h("span", { class: "sr", "aria-live": "polite" });
  const node = h(
    "div",
    { class: "heat-map", role: "application", "aria-roledescription": "heat map", "aria-label": label, tabindex: 0 },
    canvas,
    spoken,
  );
  /** @type {Cell | null} */
  let chosen = null;
  /** @type {Cell[]} */
  let rows = [];
  /** @type {number[]} */
  let tops = [];
  let columns = 0;

  const lay = () => {
    rows = groups.flatMap((group, g) => group.rows.map((_, row) => ({ group: g, row, column: 0 })));
    tops = rows.map(({ group }, i) => i * ROW_PX + group * GROUP_GAP);
    columns = groups[0]?.rows[0]?.values.length ?? 0;
  };
  const valueAt = (/** @type {Cell} */ { group, row, column }) => groups[group].rows[row].values[column];

  const draw = oncePerFrame(() => {
    const width = node.clientWidth;
    const height = (tops.at(-1) ?? 0) + ROW_PX;
    if (!width || !columns) return;
    const ratio = devicePixelRatio || 1;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.setProperty("width", `${width}px`);
    canvas.style.setProperty("height", `${height}px`);
    context.scale(ratio, ratio);
    const ramp = weightRamp();
    const edge = (/** @type {number} */ column) => Math.round((column * width) / columns);
    for (const [i, cell] of rows.entries())
      for (let column = 0; column < columns; column++) {
        const value = valueAt({ ...cell, column });
        if (value == null) continue;
        const level = 3 * Math.round(255 * Math.min(1, Math.max(0, value / most)));
        context.fillStyle = `rgb(${ramp[level]},${ramp[level + 1]},${ramp[level + 2]})`;
        context.fillRect(edge(column), tops[i], edge(column + 1) - edge(column) - 1, ROW_PX - 1);
      }
    if (!chosen) return;
    const at = indexOf(chosen);
    context.strokeStyle = colour("--ink");
    context.lineWidth = 2;
    context.strokeRect(edge(chosen.column), tops[at], edge(chosen.column + 1) - edge(chosen.column) - 1, ROW_PX - 1);
  });
  /** @param {Cell} cell */
  const indexOf = (cell) => rows.findIndex(({ group, row }) => group === cell.group && row === cell.row);
  /** @param {Cell | null} cell */
  const choose = (cell) => {
    chosen = cell;
    draw();
  };
  /** @param {PointerEvent | MouseEvent} event @returns {Cell | null} */
  const cellBelow = (event) => {
    const i = tops.findLastIndex((top) => top <= event.offsetY);
    const column = Math.floor((event.offsetX / node.clientWidth) * columns);
    return rows[i] && column >= 0 && column < columns ? { ...rows[i], column } : null;
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    if (!rows.length) return;
    const now = chosen ?? { ...rows[0], column: columns - 1 };
    if (event.key === "Enter") onOpen(now);
    else {
      const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!by) return;
      const row = rows[Math.min(rows.length - 1, Math.max(0, indexOf(now) + by[0]))];
      const next = { ...row, column: Math.min(columns - 1, Math.max(0, now.column + by[1])) };
      choose(next);
      onHover(next);
      spoken.textContent = describe(next);
    }
    event.preventDefault();
    event.stopPropagation();
  };
  set(canvas, {
    onpointermove: (/** @type {PointerEvent} */ event) => onHover(cellBelow(event)),
    onpointerleave: () => onHover(null),
    onclick: (/** @type {MouseEvent} */ event) => {
      const cell = cellBelow(event);
      if (cell) onOpen(cell);
    },
  });
  set(node, { onkeydown: move });
  lay();
  const observer = new ResizeObserver(draw);
  observer.observe(node);
  const untheme = onTheme(draw);
  return {
    node,
    choose,
    update(changes) {
      ({ groups = groups, most = most } = changes);
      lay();
      draw();
    },
    leave() {
      observer.disconnect();
      untheme();
    },
  };
}
