/** Small parts that many views show: the state of a job, progress, choices. */
import { h, set, svg } from "./dom.js";

const LINE = {
  fill: "none",
  stroke: "currentColor",
  "stroke-width": 1.6,
  "stroke-linecap": "round",
  "stroke-linejoin": "round",
};
const RING = { cx: 6, cy: 6, fill: "none", stroke: "currentColor", "stroke-width": 1.4 };
/** @type {Record<string, () => SVGElement[]>} */
const SHAPES = {
  queued: () => [svg("circle", { ...RING, r: 4.2, "stroke-dasharray": "2.2 1.8" })],
  running: () => [
    svg("circle", { cx: 6, cy: 6, r: 2.6, fill: "currentColor" }),
    svg("circle", { ...RING, r: 5, "stroke-width": 1, opacity: 0.45, class: "pulse" }),
  ],
  stopping: () => [
    svg("circle", { ...RING, r: 4.4 }),
    svg("path", { d: "M6 1.6a4.4 4.4 0 0 1 0 8.8z", fill: "currentColor" }),
  ],
  paused: () => [svg("path", { ...LINE, d: "M4 2.5v7M8 2.5v7" })],
  succeeded: () => [svg("path", { ...LINE, d: "M2.2 6.4 4.8 9l5-6" })],
  failed: () => [svg("path", { ...LINE, d: "M2.8 2.8l6.4 6.4M9.2 2.8 2.8 9.2" })],
  cancelled: () => [svg("path", { ...LINE, d: "M2.5 6h7" })],
};

/**
 * State of a job or dataset: a shape and the API's word.
 * @param {string} status
 * @param {string} [word]
 */
export function stateMark(status, word = status) {
  const shape = SHAPES[status]?.() ?? [];
  return h(
    "span",
    { class: `state ${status}` },
    svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": true }, shape),
    word,
  );
}

/**
 * A bar of what is done.
 * @param {string} label
 * @param {number} done 0 to 1
 * @returns {{node: HTMLElement, update: (done: number) => void}}
 */
export function progressBar(label, done) {
  const node = h(
    "div",
    { class: "progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 },
    h("span"),
  );
  /** @param {number} share */
  const update = (share) =>
    set(node, { "aria-valuenow": Math.round(share * 100), vars: { "--done": `${share * 100}%` } });
  update(done);
  return { node, update };
}

/**
 * Buttons of which one is pressed.
 * @template {string | number | boolean} V
 * @param {string} label
 * @param {{value: V, text: string, title?: string}[]} options
 * @param {V} chosen
 * @param {(value: V) => void} pick
 * @returns {{node: HTMLElement, press: (value: V) => void}} press: shows a choice that was made elsewhere
 */
export function choices(label, options, chosen, pick) {
  const buttons = options.map(({ value, text, title }) => {
    const onclick = () => {
      press(value);
      pick(value);
    };
    return h("button", { type: "button", title, onclick }, text);
  });
  /** @param {V} value */
  const press = (value) => {
    for (const [i, button] of buttons.entries()) set(button, { "aria-pressed": String(options[i].value === value) });
  };
  press(chosen);
  return { node: h("div", { class: "choices", role: "group", "aria-label": label }, buttons), press };
}

/** Sign of a line in a legend. @param {string} colour a token @param {boolean} [isDashed] */
export const lineSign = (colour, isDashed) =>
  h("i", { class: isDashed ? "line-sign dashed" : "line-sign", vars: { "--c": `var(${colour})` } });

/** Sign of ringed dots in a legend. @param {string} colour a token */
export const dotSign = (colour) => h("i", { class: "dot-sign", vars: { "--c": `var(${colour})` } });
