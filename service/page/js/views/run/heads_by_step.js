/**
 * Heads by step: one number of every head at every validation, on one scale. Pointing shows that head at that step, a
 * click opens it in Attention.
 *
 * @typedef {import("../run.js").Found} Found
 * @typedef {import("../../parts/heat_map.js").Cell} Cell
 * @typedef {{steps: number[], metrics: Record<string, {chance: number | null, bounds: [number, number | null],
 *   unit: string, formula: string}>, scale: Record<string, [number, number]>, reason: string | null, probe: any,
 *   layers: {layer: number, n_head: number, heads: number[], values: Record<string, (number | null)[][]>}[]}} History
 */
import { get, isAbort } from "../../api.js";
import { h, replace, set, setVariables, svg } from "../../dom.js";
import { short, whole } from "../../format.js";
import { onTheme, weightRamp } from "../../palette.js";
import { heatMap } from "../../parts/heat_map.js";
import { drawThumbnail } from "../../parts/matrix.js";
import { Weights } from "../../parts/weights.js";
import { skeleton as block, empty, showProblem } from "../../placeholders.js";
import { go, note, to } from "../../router.js";

const FIRST = "previous";
const REST_MS = 180; // the pointer rests before a picture is asked for
const KEPT = 8;
/** @type {Record<string, string>} */
const NAMES = {
  entropy_relative: "Entropy, relative",
  previous: "Previous token",
  diagonal: "Itself",
  sink: "First token",
  sink_norm: "First token, by norm",
  mean_distance: "Mean distance",
  distance_variance: "Variance of distance",
  output_norm: "Norm of its output",
  induction: "Induction",
  duplicate: "Same token before",
};
/** @type {Record<string, string>} */
const REASONS = {
  no_events: "No heads were measured yet; the first numbers come with the first validation.",
  head_statistics_off: "Heads were not measured: evaluation.head_statistics is false.",
  too_many_heads: "Heads were not measured: the model has more than 2,048.",
};

export class HeadsByStep {
  id = "heads";
  title = "Heads";
  legend = h("span", { class: "end history-legend faint" });
  place = h("div", {}, block(260));
  about = h("div", { class: "history-about" });
  formula = h("span", { class: "faint history-formula" });
  picture = h("canvas", { class: "history-picture", "aria-hidden": true });

  /** @param {Found} found @param {Record<string, string>} query @param {AbortSignal} signal */
  constructor(found, query, signal) {
    this.found = found;
    this.signal = signal;
    this.metric = query.metric ?? FIRST;
    /** @type {History | null} */
    this.history = null;
    /** @type {ReturnType<typeof heatMap> | null} */
    this.map = null;
    /** @type {Cell | null} */
    this.cell = null;
    /** @type {Map<string, Promise<Weights>>} */
    this.weights = new Map();
    /** @type {Promise<{data: {id: string, checkpoints: string[]}[]}> | null} */
    this.records = null;
    this.resting = 0;
    this.pick = h("select", {
      class: "field",
      "aria-label": "Number of heads",
      onchange: () => {
        this.metric = this.pick.value;
        note({ metric: this.metric });
        this.draw();
      },
    });
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Heads by step" },
      h("div", { class: "section-head" }, h("h2", {}, "Heads by step"), this.pick, this.formula, this.legend),
      this.place,
    );
    this.untheme = onTheme(() => {
      this.drawLegend();
      this.showPicture();
    });
    this.load();
  }

  async load() {
    try {
      const path = `/runs/${encodeURIComponent(this.found.name)}/heads`;
      this.history = /** @type {History} */ (await get(path, { query: { max_points: 200 }, signal: this.signal }));
      this.draw();
    } catch (error) {
      showProblem(this.place, error, () => this.load());
    }
  }

  /** @param {Found} found */
  update(found) {
    this.found = found;
    if (found.job && !found.job.terminal) this.load();
  }

  draw() {
    const history = /** @type {History} */ (this.history);
    const names = Object.keys(history.metrics);
    const isEmpty = !history.steps.length;
    this.pick.classList.toggle("hidden", isEmpty);
    if (isEmpty) {
      replace(this.place, empty(REASONS[history.reason ?? "no_events"] ?? history.reason));
      return;
    }
    if (!names.includes(this.metric)) this.metric = names.includes(FIRST) ? FIRST : names[0];
    replace(
      this.pick,
      names.map((name) => h("option", { value: name }, NAMES[name] ?? name)),
    );
    this.pick.value = this.metric;
    replace(this.formula, history.metrics[this.metric].formula);
    const groups = history.layers.map(({ layer, heads, values }) => ({
      name: `Layer ${layer}`,
      rows: heads.map((head, row) => ({ name: String(head), values: values[this.metric][row] })),
    }));
    const most = this.most();
    if (this.map && this.rows === groups.flatMap(({ rows }) => rows).length) this.map.update({ groups, most });
    else this.build(groups, most);
    this.drawAxis();
    this.drawLegend();
    const last = history.steps.length - 1;
    this.point(this.cell && this.cell.column <= last ? this.cell : this.strongest(groups, last));
  }

  most() {
    const history = /** @type {History} */ (this.history);
    const scale = history.scale[this.metric];
    if (scale) return scale[1] || 1;
    const all = history.layers.flatMap(({ values }) => values[this.metric].flat()).filter((v) => v != null);
    return Math.max(0.2, ...all);
  }

  /** @param {import("../../parts/heat_map.js").HeatGroup[]} groups @param {number} column @returns {Cell} */
  strongest(groups, column) {
    const cells = groups.flatMap(({ rows }, group) => rows.map((_, row) => ({ group, row, column })));
    const value = (/** @type {Cell} */ { group, row }) => groups[group].rows[row].values[column] ?? -1;
    return cells.reduce((best, cell) => (value(cell) > value(best) ? cell : best));
  }

  /** @param {import("../../parts/heat_map.js").HeatGroup[]} groups @param {number} most */
  build(groups, most) {
    this.map?.leave();
    this.rows = groups.flatMap(({ rows }) => rows).length;
    this.map = heatMap({
      label: `Heads by step: ${this.rows} heads`,
      groups,
      most,
      describe: (cell) => {
        const { layer, head, step, value } = this.at(cell);
        return `layer ${layer}, head ${head}, step ${whole(step)}: ${short(value)}`;
      },
      onHover: (cell) => cell && this.point(cell),
      onOpen: (cell) => go(this.address(cell)),
    });
    this.axis = h("div", { class: "history-axis faint", "aria-hidden": true });
    const labels = groups.map(({ name, rows }) =>
      h(
        "div",
        { class: "history-layer" },
        h("span", { class: "history-name" }, name),
        h(
          "span",
          {},
          rows.map((row) => h("span", { class: "history-head" }, row.name)),
        ),
      ),
    );
    const main = h(
      "div",
      { class: "history-main" },
      h("div", { "aria-hidden": true }, labels),
      h("div", {}, this.map.node, this.axis),
    );
    replace(this.place, h("div", { class: "history" }, main, this.about));
  }

  drawAxis() {
    const { steps } = /** @type {History} */ (this.history);
    const every = Math.ceil(steps.length / 8);
    const marks = steps.map((step, i) => h("span", {}, i % every === 0 || i === steps.length - 1 ? whole(step) : ""));
    if (this.axis) replace(this.axis, marks);
  }

  drawLegend() {
    if (!this.history?.steps.length) return;
    const bar = h("canvas", { width: 128, height: 1, class: "legend-bar", "aria-hidden": true });
    const context = /** @type {CanvasRenderingContext2D} */ (bar.getContext("2d"));
    const ramp = weightRamp();
    for (let x = 0; x < 128; x++) {
      context.fillStyle = `rgb(${ramp[x * 6]},${ramp[x * 6 + 1]},${ramp[x * 6 + 2]})`;
      context.fillRect(x, 0, 1, 1);
    }
    const most = this.most();
    const { chance } = this.history.metrics[this.metric];
    const place = h("span", { class: "legend-place" }, bar);
    const hasMark = chance != null && chance > 0 && chance <= most;
    if (hasMark) {
      place.append(h("i", { class: "chance" }));
      setVariables(place, { "--x": `${(100 * chance) / most}%` });
    }
    const says = hasMark && h("span", {}, `even attention ${short(chance)}`);
    replace(this.legend, says, "0", place, short(most));
  }

  /** @param {Cell} cell */
  at({ group, row, column }) {
    const { layers, steps } = /** @type {History} */ (this.history);
    const { layer, heads, values } = layers[group];
    const curve = values[this.metric][row];
    return { layer, head: heads[row], step: steps[column], curve, value: curve[column] };
  }

  /** File of the checkpoint of a step, or the nearest one. @param {number} step */
  checkpointOf(step) {
    const all = this.found.run?.checkpoints ?? [];
    const far = (/** @type {{step: number}} */ one) => Math.abs(one.step - step);
    return all.length ? all.reduce((best, one) => (far(one) < far(best) ? one : best)) : null;
  }

  /** @param {Cell} cell */
  address(cell) {
    const { layer, head, step } = this.at(cell);
    return to(["attention", this.found.name, 0], { checkpoint: this.checkpointOf(step)?.file, layer, head });
  }

  /** @param {Cell} cell */
  point(cell) {
    this.cell = cell;
    this.map?.choose(cell);
    const { layer, head, step, curve, value } = this.at(cell);
    const { steps, metrics } = /** @type {History} */ (this.history);
    const most = this.most();
    const x = (/** @type {number} */ i) => +((i / Math.max(1, steps.length - 1)) * 196 + 2).toFixed(1);
    const y = (/** @type {number | null} */ v) => +(40 - ((v ?? 0) / most) * 36).toFixed(1);
    const points = curve.map((v, i) => `${x(i)} ${y(v)}`).join("L");
    const { chance, unit } = metrics[this.metric];
    replace(
      this.about,
      h(
        "div",
        { class: "about-head" },
        h("h3", {}, `Layer ${layer}, head ${head}`),
        h("span", { class: "faint" }, `step ${whole(step)}`),
      ),
      h(
        "div",
        { class: "about-pair" },
        this.picture,
        h(
          "p",
          {},
          h("span", { class: "muted" }, NAMES[this.metric] ?? this.metric),
          h("strong", {}, short(value)),
          h("span", { class: "faint" }, unit, chance != null && `, even attention ${short(chance)}`),
        ),
      ),
      svg(
        "svg",
        { viewBox: "0 0 200 44", width: 200, height: 44, class: "about-curve", "aria-hidden": true },
        svg("path", { d: `M${points}` }),
        svg("circle", { cx: x(cell.column), cy: y(value), r: 3.2 }),
      ),
      h("a", { href: this.address(cell) }, "Open in Attention"),
    );
    this.picture.classList.add("hidden");
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.showPicture(), REST_MS);
  }

  /** The head's weights at this step, where a checkpoint of it is kept and example 0 was captured. */
  async showPicture() {
    const { cell } = this;
    if (!cell || !this.history?.steps.length) return;
    const { layer, head, step } = this.at(cell);
    try {
      const file = await this.capturedAt(step);
      if (!file) return;
      const weights = await this.weightsOf(file);
      if (this.cell !== cell) return;
      drawThumbnail(this.picture, { weights, layer, place: head, most: weights.most(layer, head) });
      set(this.picture, { title: `example 0, ${file}` });
      this.picture.classList.remove("hidden");
    } catch (error) {
      if (!isAbort(error)) this.records = null; // without a picture the numbers stay
    }
  }

  /** A checkpoint of a step under which example 0 was captured. @param {number} step */
  async capturedAt(step) {
    const path = `/attention/${encodeURIComponent(this.found.name)}`;
    this.records ??= get(path, { query: { limit: 100 }, signal: this.signal });
    const { data } = await /** @type {NonNullable<typeof this.records>} */ (this.records);
    const captured = data.find(({ id }) => id === "0")?.checkpoints ?? [];
    const files = (this.found.run?.checkpoints ?? []).filter((one) => one.step === step).map(({ file }) => file);
    return files.find((file) => captured.includes(file));
  }

  /** @param {string} checkpoint @returns {Promise<Weights>} */
  weightsOf(checkpoint) {
    const known = this.weights.get(checkpoint);
    if (known) return known;
    const path = `/attention/${encodeURIComponent(this.found.name)}/0/weights`;
    const asked = get(path, { query: { checkpoint, pool: 96 }, signal: this.signal }).then(
      (reply) => new Weights(reply),
    );
    this.weights.set(checkpoint, asked);
    if (this.weights.size > KEPT) this.weights.delete([...this.weights.keys()][0]);
    return asked;
  }

  leave() {
    clearTimeout(this.resting);
    this.map?.leave();
    this.untheme();
  }
}
