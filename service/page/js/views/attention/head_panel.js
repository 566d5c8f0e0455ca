/**
 * What is known of one head: every number as a dot among those of all heads, what the probe of the checkpoint calls it,
 * its strongest pairs, and its files.
 *
 * @typedef {import("./attention_replies.js").Captured} Captured
 * @typedef {import("./head_grid.js").Place} Place
 */
import { h, replace, svg } from "../../dom.js";
import { short, token, weight } from "../../format.js";
import { to } from "../../router.js";
import { everyHead, METRICS, numberOf } from "./head_grid.js";

const PAIRS = 5;
const [LEFT, WIDTH] = [4, 92]; // of 100 units
/** @type {Record<string, string>} */
const TYPES = {
  previous: "previous token",
  self: "self",
  sink: "sink",
  induction: "induction",
  duplicate: "duplicate",
};

/**
 * @typedef {object} Shown
 * @property {Captured} captured
 * @property {import("../../parts/matrix.js").Head} drawn
 * @property {Place} place
 * @property {any} statistics reply of `/statistics`; null while it is not here
 * @property {string} run
 * @property {string} id of the text
 * @property {Record<string, unknown>} asked checkpoint and max_tokens
 *
 * @typedef {object} On
 * @property {(query: number, key: number | null) => void} point
 * @property {() => void} unpoint
 * @property {(query: number) => void} pin
 */

/** Fill the panel. @param {HTMLElement} panel @param {Shown} shown @param {On} on */
export function fillPanel(panel, shown, on) {
  const { captured, place, statistics } = shown;
  const { n_head: n, head_dim: size } = captured.reply.layers[place.layer];
  replace(
    panel,
    h("h2", {}, `Layer ${place.layer}, head ${place.head}`),
    h("p", { class: "faint" }, `head size ${size} · ${n === 1 ? "the only head" : `one of ${n} heads`} of its layer`),
    labelsOf(statistics, place),
    h("h3", {}, "Among all heads of this text"),
    numbers(shown),
    h("h3", {}, "Strongest pairs"),
    pairs(shown, on),
    files(shown),
  );
}

/** @param {any} statistics @param {Place} place */
function labelsOf(statistics, { layer, head }) {
  const found = statistics?.heads.find((/** @type {Place} */ one) => one.layer === layer && one.head === head);
  if (!found) return h("p", { class: "head-types" }, "\u00a0");
  if (!found.types) return h("p", { class: "head-types faint" }, "Type: this checkpoint was not probed");
  if (!found.types.length) return h("p", { class: "head-types faint" }, "No type found by the probe");
  const label = (/** @type {any} */ { type, strength, score, chance }) => {
    const title = `score ${short(score)} on the probe of this checkpoint, chance ${short(chance)}: ${strength}`;
    return h(
      "span",
      { class: "head-type", title },
      TYPES[type] ?? type,
      strength === "weak" && "?",
      ` ${weight(score)}`,
    );
  };
  return h("p", { class: "head-types" }, "By the probe: ", found.types.map(label));
}

/** @param {Shown} shown */
function numbers({ captured, place, statistics }) {
  const places = everyHead(captured.weights.heads);
  const row = (/** @type {[string, string]} */ [metric, name]) => {
    const mine = numberOf(captured, place, metric);
    if (mine == null) return null;
    const all = places.flatMap((other) => numberOf(captured, other, metric) ?? []);
    const even = statistics?.even[metric] ?? null;
    const title = statistics?.formulas[metric];
    return h(
      "tr",
      { title },
      h("th", { scope: "row" }, name),
      h("td", {}, dots(all, mine, even)),
      h("td", { class: "num" }, short(mine)),
    );
  };
  return [
    h("table", { class: "spots" }, h("tbody", {}, Object.entries(METRICS).map(row))),
    statistics && h("p", { class: "faint note" }, "Stroke: attention that is even over all keys."),
  ];
}

/** @param {number[]} all @param {number} mine @param {number | null} even */
function dots(all, mine, even) {
  const values = even == null ? all : [...all, even];
  const low = Math.min(mine, ...values);
  const span = Math.max(mine, ...values) - low || 1;
  const at = (/** @type {number} */ value) => +(LEFT + ((value - low) / span) * WIDTH).toFixed(1);
  return svg(
    "svg",
    { class: "spot", viewBox: "0 0 100 14", width: 100, height: 14, "aria-hidden": true },
    svg("path", { d: `M${LEFT} 7h${WIDTH}` }),
    even != null && svg("path", { class: "even", d: `M${at(even)} 2v10` }),
    svg("path", { class: "all", d: all.map((value) => `M${at(value)} 7h0`).join("") }),
    svg("circle", { class: "me", cx: at(mine), cy: 7, r: 4 }),
  );
}

/** @param {Shown} shown @param {On} on */
function pairs({ drawn: { weights, layer, place } }, on) {
  const name = (/** @type {number} */ i) => token(weights.tokens[i]);
  const found = weights.strongest(layer, place, PAIRS).map(({ weight: p, query, key }) =>
    h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "pair",
          onpointerenter: () => on.point(query, key),
          onpointerleave: on.unpoint,
          onfocus: () => on.point(query, key),
          onblur: on.unpoint,
          onclick: () => on.pin(query),
        },
        h("span", { class: "look-text" }, name(query)),
        h("span", { class: "faint" }, " → "),
        h("span", { class: "seen-text" }, name(key)),
      ),
      h("span", { class: "num" }, weight(p)),
    ),
  );
  return [
    h("ol", { class: "pairs" }, found),
    h("p", { class: "faint note" }, "Query and key; the first token and a token's look at itself are left out."),
  ];
}

/** @param {Shown} shown */
function files({ captured: { reply }, place, run, id, asked }) {
  const query = { ...asked, ...place };
  const file = `${run}-${id}-step-${reply.step}-layer-${place.layer}-head-${place.head}`;
  const picture = (/** @type {string} */ format) =>
    h(
      "a",
      { href: to(["attention", run, id], { ...query, format }), download: `${file}.${format}` },
      format.toUpperCase(),
    );
  return h(
    "p",
    { class: "head-files" },
    picture("png"),
    picture("svg"),
    h("a", { href: to(["attention", run, id, "weights"], query), download: `${file}.json` }, "JSON"),
  );
}
