/**
 * Curves of a run: the loss large, the others small, with one cursor and one zoom. Points are appended as they come; a
 * curve that has doubled is asked for anew.
 *
 * @typedef {import("../run.js").Found} Found
 * @typedef {import("../../parts/chart.js").Series} Series
 * @typedef {{steps: number[], values: (number | string | null)[], points_total: number}} Curve
 * @typedef {{series: Record<string, Curve>, x: {tokens_per_step: number | null, flops_per_token: number | null,
 *   seconds: Record<string, number[]>}}} Metrics
 */
import { get, isAbort } from "../../api.js";
import { choices, dotSign, lineSign } from "../../controls.js";
import { download, h, replace } from "../../dom.js";
import { bytes, count, duration, loss, mark, short, whole } from "../../format.js";
import { runColour } from "../../palette.js";
import { ChartGroup, csvOf, lineChart } from "../../parts/chart.js";
import { nearestIndex } from "../../parts/scales.js";
import { skeleton as block, empty, showProblem } from "../../placeholders.js";
import { note } from "../../router.js";
import { fact } from "./run_head.js";

const POINTS = 1000;
const GROW_MS = 1500;
const MAIN_PX = 332;
const COLUMN_PX = 410; // of the small charts
/** @type {Record<string, {title: string, format: (y: any) => string, isSmooth: boolean}>} */
const SMALL = {
  lr: { title: "Learning rate", format: (y) => (y ? y.toPrecision(2) : "0"), isSmooth: false },
  grad_norm: { title: "Gradient norm", format: short, isSmooth: true },
  tokens_per_s: { title: "Tokens/s", format: count, isSmooth: true },
  memory_bytes: { title: "Memory", format: bytes, isSmooth: false },
  mfu: { title: "MFU", format: (y) => `${(100 * y).toFixed(1)} %`, isSmooth: true },
};
/** @type {Record<string, {text: string, format: (x: number) => string}>} */
const AXES = {
  step: { text: "Step", format: whole },
  tokens: { text: "Tokens", format: count },
  time: { text: "Time", format: duration },
  flops: { text: "FLOPs", format: count },
};
/** @typedef {keyof typeof AXES} Axis */

export class Curves {
  id = "curves";
  title = "Curves";
  reading = h("p", { class: "reading" });
  tools = h("span", { class: "end" });
  outcome = h("p", { class: "facts under" });
  smalls = h("div", { class: "small-charts" });
  place = h("div", { class: "main-chart" }, block(MAIN_PX));

  /** @param {Found} found @param {Record<string, string>} query @param {AbortSignal} signal */
  constructor(found, query, signal) {
    this.found = found;
    this.signal = signal;
    /** @type {Metrics | null} */
    this.whole = null;
    /** @type {Metrics | null} */
    this.zoomed = null;
    this.axis = query.x in AXES ? query.x : "step";
    this.log = query.log ?? "y";
    this.smoothing = smoothingOf(query.smooth);
    this.pending = /^[\d.]+-[\d.]+$/.test(query.zoom ?? "") ? query.zoom.split("-").map(Number) : null;
    this.group = new ChartGroup(null, (zoom) => this.onZoom(zoom));
    /** @type {Map<string, ReturnType<typeof lineChart>>} */
    this.charts = new Map();
    this.growing = 0;
    this.asked = 0;
    this.total = 0;
    this.node = h(
      "section",
      { id: this.id, class: "run-section curves", "aria-label": "Curves" },
      h(
        "div",
        { class: "curves-main" },
        h("div", { class: "section-head" }, h("h2", {}, "Loss"), this.reading, this.tools),
        this.place,
        this.outcome,
      ),
      this.smalls,
    );
    this.drawOutcome();
    this.load();
  }

  /** @param {string} [name] @param {Record<string, unknown>} [range] @returns {Promise<Metrics>} */
  ask(name, range = {}) {
    const path = `/jobs/${this.found.job?.id}/metrics`;
    return get(path, { query: { name, max_points: POINTS, ...range }, signal: this.signal });
  }

  async load() {
    try {
      const first = await this.ask("loss,val_loss");
      this.take(first);
      const rest = await this.ask(Object.keys(SMALL).join(","));
      if (this.whole) this.take(merged(first, rest));
      if (this.pending) {
        const [from, to] = this.pending;
        this.pending = null;
        this.group.setZoom([this.xOf(from), this.xOf(to)]);
      }
    } catch (error) {
      showProblem(this.place, error, () => this.load());
    }
  }

  /** @param {Metrics} metrics */
  take(metrics) {
    this.whole = metrics;
    this.total = length(metrics);
    this.draw();
  }

  /** @returns {Metrics | null} */
  get metrics() {
    return this.zoomed ?? this.whole;
  }

  draw() {
    const { metrics } = this;
    if (!metrics) return;
    const hasPoints = Object.values(metrics.series).some(({ steps }) => steps.length);
    if (!hasPoints && !this.zoomed) {
      replace(
        this.place,
        empty(this.found.job?.terminal ? "No step was trained." : "The first point comes after the first step."),
      );
      return;
    }
    this.drawTools();
    const colour = runColour(this.found.run?.colour ?? this.found.job?.colour);
    const series = [
      this.series("loss", "loss", colour, {}),
      this.series("val_loss", "val loss", "--ink", { dots: true }),
    ].filter((one) => one != null);
    const last = metrics.series.val_loss?.values.at(-1) ?? metrics.series.loss?.values.at(-1);
    this.show("loss", this.place, {
      height: MAIN_PX,
      label: `Loss and validation loss by ${AXES[this.axis].text.toLowerCase()}; ends at ${loss(last)}`,
      series,
      isLogY: this.log.includes("y"),
      formatX: AXES[this.axis].format,
      upTo: this.axis === "step" && this.isRunning() ? (this.found.job?.progress.max_steps ?? undefined) : undefined,
      onRead: (readings, cursor) => this.read(readings, cursor),
    });
    for (const [name, { title, format, isSmooth }] of Object.entries(SMALL))
      this.drawSmall(name, title, format, isSmooth);
  }

  isRunning() {
    return this.found.job != null && ["running", "stopping"].includes(this.found.job.status);
  }

  /** @param {string} name @param {string} title @param {(y: any) => string} format @param {boolean} isSmooth */
  drawSmall(name, title, format, isSmooth) {
    const one = this.series(name, title, "--ink-2", { smooth: isSmooth });
    if (!one) return;
    let box = this.smalls.querySelector(`[data-curve=${name}]`);
    if (!box) {
      box = h(
        "div",
        { class: "small-chart", "data-curve": name },
        h("p", {}, h("span", { class: "muted" }, title), h("span", {}, this.saving(name), h("b"))),
        h("div"),
      );
      const order = Object.keys(SMALL);
      const next = [...this.smalls.children].find(
        (other) => order.indexOf(/** @type {HTMLElement} */ (other).dataset.curve ?? "") > order.indexOf(name),
      );
      this.smalls.insertBefore(box, next ?? null);
    }
    const value = /** @type {HTMLElement} */ (box.querySelector("b"));
    this.show(name, /** @type {HTMLElement} */ (box.lastElementChild), {
      height: this.smallHeight(),
      label: `${title} by ${AXES[this.axis].text.toLowerCase()}; ends at ${format(one.y.at(-1))}`,
      series: [one],
      formatX: AXES[this.axis].format,
      formatY: name === "memory_bytes" ? (y) => bytes(y).replace("iB", "") : mark,
      onRead: ([now]) => replace(value, typeof now?.y === "number" ? format(now.y) : (now?.y ?? "–")),
    });
  }

  smallHeight() {
    const n = Object.keys(SMALL).filter((name) => this.metrics?.series[name]?.steps.length).length;
    return Math.min(96, Math.max(60, Math.round(COLUMN_PX / n) - 32));
  }

  /** @param {string} name @param {HTMLElement} place @param {import("../../parts/chart.js").ChartOptions} options */
  show(name, place, options) {
    const all = { ...options, smoothing: this.smoothing, isLogX: this.log.includes("x"), group: this.group };
    const known = this.charts.get(name);
    if (known) return known.update(all);
    const chart = lineChart(all);
    this.charts.set(name, chart);
    replace(place, chart.node);
  }

  /** @param {string} name @param {string} text @param {string} colour @param {Partial<Series>} more @returns {Series | null} */
  series(name, text, colour, more) {
    const curve = this.metrics?.series[name];
    if (!curve?.steps.length) return null;
    return { name: text, colour, x: this.xs(name), y: curve.values, ...more };
  }

  /** Places of a curve on the present axis. @param {string} name @returns {number[]} */
  xs(name) {
    const { series, x } = /** @type {Metrics} */ (this.metrics);
    const { steps } = series[name];
    if (this.axis === "time") return x.seconds[name] ?? steps;
    const per = this.perStep();
    return per === 1 ? steps : steps.map((step) => step * per);
  }

  perStep() {
    const { tokens_per_step: tokens, flops_per_token: flops } = this.whole?.x ?? {};
    if (this.axis === "tokens") return tokens ?? 1;
    return this.axis === "flops" ? (tokens ?? 1) * (flops ?? 1) : 1;
  }

  /** @param {number} step */
  xOf(step) {
    if (this.axis !== "time") return step * this.perStep();
    const steps = this.whole?.series.loss?.steps ?? [];
    return this.whole?.x.seconds.loss?.[nearestIndex(steps, step)] ?? step;
  }

  /** @param {number} x */
  stepOf(x) {
    if (this.axis !== "time") return x / this.perStep();
    const seconds = this.whole?.x.seconds.loss ?? [];
    return this.whole?.series.loss?.steps[nearestIndex(seconds, x)] ?? x;
  }

  /** @param {import("../../parts/chart.js").Reading[]} readings @param {number | null} cursor */
  read(readings, cursor) {
    const train = readings.find(({ series }) => !series.dots);
    const validation = readings.find(({ series }) => series.dots);
    const main = train ?? validation;
    if (!main) return;
    const { text, format } = AXES[this.axis];
    const value = (/** @type {number | string | null} */ y) => h("b", {}, loss(y));
    const isElsewhere = cursor != null && validation && validation.x !== main.x;
    replace(
      this.reading,
      fact(text.toLowerCase(), format(main.x)),
      train && h("span", {}, lineSign(train.series.colour), "loss ", value(train.y)),
      validation &&
        h(
          "span",
          {},
          dotSign("--ink"),
          "val loss ",
          value(validation.y),
          isElsewhere && h("span", { class: "faint" }, ` at ${format(validation.x)}`),
        ),
    );
  }

  drawTools() {
    if (this.tools.childElementCount) return;
    const { x } = /** @type {Metrics} */ (this.whole);
    /** @type {Record<string, boolean>} */
    const has = {
      step: true,
      tokens: x?.tokens_per_step != null,
      time: x?.seconds?.loss != null,
      flops: x?.tokens_per_step != null && x.flops_per_token != null,
    };
    const options = Object.entries(AXES)
      .filter(([name]) => has[name])
      .map(([value, { text }]) => ({ value, text }));
    if (!options.some(({ value }) => value === this.axis)) this.axis = "step";
    const amount = h("output", { class: "amount" }, this.smoothing.toFixed(2));
    const slider = h("input", {
      type: "range",
      min: 0,
      max: 0.99,
      step: 0.01,
      value: String(this.smoothing),
      "aria-label": "Smoothing",
      oninput: () => {
        this.smoothing = Number(slider.value);
        replace(amount, this.smoothing.toFixed(2));
        keepSmoothing(slider.value);
        note({ smooth: slider.value });
        this.draw();
      },
    });
    const box = (/** @type {string} */ letter, /** @type {string} */ text) => {
      const input = h("input", {
        type: "checkbox",
        checked: this.log.includes(letter),
        onchange: () => {
          this.log =
            ["y", "x"].filter((one) => (one === letter ? input.checked : this.log.includes(one))).join("") || "no";
          note({ log: this.log === "y" ? "" : this.log });
          this.draw();
        },
      });
      return { input, node: h("label", { class: "check" }, input, text) };
    };
    const [y, logX] = [box("y", "log"), box("x", "log x")];
    this.logY = y.input;
    replace(
      this.tools,
      h("label", { class: "check smooth" }, "smoothing", slider, amount),
      y.node,
      h("span", { class: "log-x" }, logX.node),
      options.length > 1 && choices("Horizontal axis", options, this.axis, (axis) => this.setAxis(axis)).node,
    );
  }

  /** @param {string} axis */
  setAxis(axis) {
    const steps = this.group.zoom?.map((x) => this.stepOf(x));
    this.axis = axis;
    note({ x: axis === "step" ? "" : axis });
    this.group.cursor = null;
    if (steps) this.group.zoom = [this.xOf(steps[0]), this.xOf(steps[1])];
    this.draw();
  }

  toggleLog() {
    this.logY?.click();
  }

  resetZoom() {
    if (this.group.zoom) this.group.setZoom(null);
  }

  /** Ask for a range by itself: 1,000 points of it. @param {[number, number] | null} zoom */
  async onZoom(zoom) {
    const steps = zoom?.map((x) => Math.round(this.stepOf(x)));
    note({ zoom: steps?.join("-") ?? "" });
    this.asked += 1;
    const turn = this.asked;
    if (!steps) {
      this.zoomed = null;
      return this.draw();
    }
    try {
      const metrics = await this.ask(undefined, { from: Math.max(0, steps[0]), to: Math.max(steps[0], steps[1]) });
      if (turn !== this.asked) return;
      this.zoomed = metrics;
      this.draw();
    } catch (error) {
      if (!isAbort(error)) this.draw(); // the coarse points stay
    }
  }

  /** @param {import("../../types.js").Progress} progress */
  grow({ step }) {
    const last = this.whole?.series.loss?.steps.at(-1) ?? 0;
    if (step == null || step === last || this.growing || document.hidden) return;
    this.growing = setTimeout(async () => {
      await this.append(last, step);
      this.growing = 0;
    }, GROW_MS);
  }

  /** @param {number} last @param {number} step */
  async append(last, step) {
    try {
      if (!this.whole || step < last) return await this.load(); // it goes on from an earlier state
      const more = await this.ask(undefined, { from: last + 1 });
      const longer = appended(this.whole, more);
      if (length(longer) > 2 * Math.max(POINTS, this.total)) return await this.load();
      this.whole = longer;
      if (!this.zoomed) this.draw();
    } catch (error) {
      if (!isAbort(error)) return; // the next progress asks again
    }
  }

  /** @param {Found} found */
  update(found) {
    const wasRunning = this.isRunning();
    const isOther = found.job?.id !== this.found.job?.id;
    this.found = found;
    this.drawOutcome();
    if (isOther || wasRunning !== this.isRunning()) this.load();
  }

  drawOutcome() {
    const outcome = this.found.run?.outcome;
    const percent = (/** @type {number} */ share) => `${(100 * share).toFixed(1)} %`;
    /** @type {[string, unknown, (value: any) => string][]} */
    const known = [
      ["test loss", outcome?.test_loss, loss],
      ["bits per byte", outcome?.test_bits_per_byte, loss],
      ["epochs", outcome?.epochs, (n) => n.toFixed(2)],
      ["peak memory", outcome?.peak_memory_bytes, bytes],
      ["waiting for data", outcome?.data_wait_share, percent],
    ];
    replace(
      this.outcome,
      known.map(([term, value, format]) => value != null && fact(term, format(value))),
      h("span", { class: "end" }, this.saving("loss")),
    );
  }

  /** @param {string} name of a chart */
  saving(name) {
    const file = `${this.found.name}-${name}`;
    const csv = () => {
      const names = name === "loss" ? ["loss", "val_loss"] : [name];
      const series = names.map((one) => this.series(one, one, "--ink", {})).filter((one) => one != null);
      download(`${file}.csv`, csvOf(this.axis, series));
    };
    const button = (/** @type {string} */ text, /** @type {() => void} */ onclick) =>
      h(
        "button",
        { type: "button", class: "link-btn", "aria-label": `${text} of ${name.replaceAll("_", " ")}`, onclick },
        text,
      );
    return h(
      "span",
      { class: "saving" },
      button("CSV", csv),
      button("PNG", () => this.charts.get(name)?.savePng(`${file}.png`)),
    );
  }

  leave() {
    clearTimeout(this.growing);
    for (const chart of this.charts.values()) chart.leave();
  }
}

/** @param {Metrics} a @param {Metrics} b @returns {Metrics} */
const merged = (a, b) => ({
  series: { ...a.series, ...b.series },
  x: { ...a.x, seconds: { ...a.x?.seconds, ...b.x?.seconds } },
});

/** @param {Metrics} known @param {Metrics} more @returns {Metrics} */
function appended(known, more) {
  /** @type {Metrics} */
  const both = { series: { ...known.series }, x: { ...known.x, ...more.x, seconds: { ...known.x.seconds } } };
  for (const [name, { steps, values, points_total }] of Object.entries(more.series)) {
    const old = known.series[name] ?? { steps: [], values: [], points_total: 0 };
    const from = steps.findIndex((step) => step > (old.steps.at(-1) ?? -1));
    if (from < 0) continue;
    both.series[name] = {
      steps: [...old.steps, ...steps.slice(from)],
      values: [...old.values, ...values.slice(from)],
      points_total: old.points_total + points_total - from,
    };
    both.x.seconds[name] = [...(known.x.seconds?.[name] ?? []), ...(more.x.seconds?.[name] ?? []).slice(from)];
  }
  return both;
}

/** @param {Metrics} metrics */
const length = ({ series }) => Math.max(0, ...Object.values(series).map(({ steps }) => steps.length));

/** @param {string | undefined} given in the address */
function smoothingOf(given) {
  let text = given;
  try {
    text ??= localStorage.getItem("smoothing") ?? undefined;
  } catch {} // storage is forbidden
  const amount = Number(text ?? 0.9);
  return amount >= 0 && amount <= 0.99 ? amount : 0.9;
}

/** @param {string} text */
function keepSmoothing(text) {
  try {
    localStorage.setItem("smoothing", text);
  } catch {} // storage is forbidden: the address has it
}
