/**
 * The ragged grid: one column a layer, one dot a head, hanging from head 0. It is the mark of a run in lists and, large,
 * the map of its heads. It is never padded to a rectangle.
 */
import { h, set, svg } from "./dom.js";

const DOT = 0.68; // of the pitch
const BARS_BELOW = 2; // pixels of pitch

/** Name of a glyph for who cannot see it. @param {number[]} heads */
export const headsLabel = (heads) => `heads per layer: ${heads.join(", ")}`;

/**
 * Heads in words: `8 4 2 1`, `4 × 4` when all are equal, `8×3 4×3` above eight layers.
 * @param {number[]} heads
 */
export function headsText(heads) {
  if (heads.length > 2 && new Set(heads).size === 1) return `${heads.length} × ${heads[0]}`;
  if (heads.length <= 8) return heads.join(" ");
  /** @type {[number, number][]} */
  const groups = [];
  for (const n of heads) {
    const last = groups.at(-1);
    if (last?.[0] === n) last[1]++;
    else groups.push([n, 1]);
  }
  return groups.map(([n, times]) => (times > 1 ? `${n}×${times}` : n)).join(" ");
}

/**
 * Draw the mark of a run, in `currentColor` or the run's.
 * @param {number[]} heads
 * @param {{height?: number, width?: number, pitch?: number}} [size] the largest height, width and distance of dots
 */
export function glyph(heads, { height = 26, width = Number.POSITIVE_INFINITY, pitch = 6 } = {}) {
  const most = Math.max(...heads);
  const step = Math.min(pitch, height / most, width / heads.length);
  const size = { width: heads.length * step, height: most * step };
  const at = (/** @type {number} */ i) => +((i + 0.5) * step).toFixed(2);
  const dots = (/** @type {number} */ n, /** @type {number} */ layer) =>
    Array.from({ length: n }, (_, head) => `M${at(layer)} ${at(head)}h0`).join("");
  const bar = (/** @type {number} */ n, /** @type {number} */ layer) => `M${at(layer)} ${at(0)}V${at(n - 1)}`;
  return svg(
    "svg",
    {
      class: "glyph",
      role: "img",
      "aria-label": headsLabel(heads),
      viewBox: `0 0 ${size.width} ${size.height}`,
      ...size,
    },
    svg("path", { d: heads.map(step < BARS_BELOW ? bar : dots).join(""), "stroke-width": +(step * DOT).toFixed(2) }),
  );
}

/**
 * A glyph in a box of fixed size, so that names beside it stand below each other.
 * @param {number[] | null | undefined} heads without them, a word
 * @param {{width?: number, height?: number, pitch?: number, word?: string}} [size]
 */
export function glyphBox(heads, { width = 40, height = 28, pitch = 5, word = "data" } = {}) {
  const inside = heads ? glyph(heads, { width, height, pitch }) : word;
  return h("span", { class: "glyph-box", vars: { "--w": `${width}px`, "--h": `${height}px` } }, inside);
}

/**
 * A large glyph whose dots are heads.
 * @param {number[]} heads
 * @param {object} options
 * @param {(layer: number, head: number) => string} options.href what a dot opens
 * @param {[number, number] | null} [options.chosen] layer and head with a ring
 * @param {number} [options.pitch]
 * @param {(layer: number, head: number) => number} [options.value] 0 to 1: how strong a dot is
 * @returns {{node: SVGSVGElement, choose: (chosen: [number, number] | null) => void}}
 */
export function headMap(heads, { href, chosen = null, pitch = 14, value }) {
  const most = Math.max(...heads);
  const at = (/** @type {number} */ i) => (i + 0.5) * pitch + 3;
  const ring = svg("circle", { class: "ring", r: pitch * 0.36 + 2.2 });
  const dots = heads.flatMap((n, layer) =>
    Array.from({ length: n }, (_, head) =>
      svg(
        "a", // the grid of the view is the way by keys: hundreds of stops for Tab would hide everything else
        { href: href(layer, head), tabindex: -1, class: "dot", "data-head": `${layer}.${head}` },
        svg("title", {}, `layer ${layer}, head ${head}`),
        svg("rect", { x: layer * pitch + 3, y: head * pitch + 3, width: pitch, height: pitch, class: "target" }),
        svg("circle", {
          cx: at(layer),
          cy: at(head),
          r: pitch * 0.36,
          "fill-opacity": value ? 0.15 + 0.85 * value(layer, head) : null,
        }),
      ),
    ),
  );
  const [width, height] = [heads.length * pitch + 6, most * pitch + 6];
  const node = svg(
    "svg",
    {
      class: "head-map",
      role: "group",
      "aria-label": headsLabel(heads),
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
    },
    dots,
    ring,
  );
  /** @param {[number, number] | null} head */
  const choose = (head) => {
    ring.classList.toggle("hidden", !head);
    if (head) set(ring, { cx: at(head[0]), cy: at(head[1]) });
  };
  choose(chosen);
  return { node, choose };
}
