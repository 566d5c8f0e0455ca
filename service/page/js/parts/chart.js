/**
 * A line chart on one canvas: measured values faint, a smoothed line above, validation as ringed dots. Readings stand in
 * the head line of the view; charts of one group share cursor and zoom.
 *
 * @typedef {object} Series
 * @property {string} name
 * @property {string} colour a token, `--run-3`
 * @property {number[]} x ascending
 * @property {(number | string | null)[]} y null leaves a gap, "nan" and "inf" also set a red mark on the axis
 * @property {boolean} [dots] ringed dots, never smoothed
 * @property {boolean} [smooth] false: drawn as measured
 * @property {number[]} [dash] of two runs with one colour the newer: 6 4, then 2 3
 * @property {{low: number[], high: number[]}} [band] behind the line
 * @property {boolean} [end] false: without its name at the end
 *
 * @typedef {{series: Series, index: number, x: number, y: number | string | null}} Reading
 *
 * @typedef {object} ChartOptions
 * @property {string} label sentence for who cannot see it: "Loss by step; ends at 0.9101"
 * @property {Series[]} series
 * @property {number} height
 * @property {ChartGroup} [group]
 * @property {number} [smoothing] 0 to .99
 * @property {boolean} [isLogY]
 * @property {boolean} [isLogX]
 * @property {boolean} [hasAxes] false: the line alone, as on a progress bar
 * @property {boolean} [hasEnds] names at the ends of lines
 * @property {number} [upTo] the axis reaches at least this x
 * @property {(y: number) => string} [formatY]
 * @property {(x: number) => string} [formatX]
 * @property {(readings: Reading[], cursor: number | null) => void} [onRead] values below the pointer, else the last ones
 */
import { download, h, oncePerFrame, set, setVariables } from "../dom.js";
import { mark, whole } from "../format.js";
import { colour, onTheme } from "../palette.js";
import { nearestIndex, scale, smoothed } from "./scales.js";

const GAP = { left: 46, right: 12, top: 8, bottom: 20 };
const BARE = { left: 0, right: 0, top: 3, bottom: 3 };
const ENDS_WIDTH = 92;
const FAINT = 0.26;
const DRAG_PX = 8;

/** What the charts of a view share. */
export class ChartGroup {
  /**
   * @param {[number, number] | null} [zoom]
   * @param {(zoom: [number, number] | null) => void} [onZoom] asks for finer values and notes the zoom in the address
   */
  constructor(zoom = null, onZoom = () => {}) {
    this.zoom = zoom;
    this.onZoom = onZoom;
    /** @type {number | null} */
    this.cursor = null;
    /** @type {Set<() => void>} */
    this.charts = new Set();
  }

  redraw() {
    for (const draw of this.charts) draw();
  }

  /** @param {[number, number] | null} zoom */
  setZoom(zoom) {
    this.zoom = zoom;
    this.redraw();
    this.onZoom(zoom);
  }

  /** @param {number | null} x */
  point(x) {
    this.cursor = x;
    this.redraw();
  }
}

/**
 * Make a chart.
 * @param {ChartOptions} options
 * @returns {{node: HTMLElement, update: (changes: Partial<ChartOptions>) => void, savePng: (name: string) => void,
 *   leave: () => void}} leave: call it when the chart is removed
 */
export function lineChart(options) {
  const state = { group: new ChartGroup(), smoothing: 0, hasAxes: true, ...options };
  const { group } = state;
  const canvas = h("canvas", { "aria-hidden": true });
  const node = h("div", { class: "chart", role: "img", tabindex: 0, "aria-label": state.label }, canvas);
  setVariables(node, { "--height": `${state.height}px` });
  /** @type {Frame | null} */
  let frame = null;
  /** @type {{from: number, to: number} | null} */
  let drag = null;

  const draw = oncePerFrame(() => {
    if (!node.clientWidth) return;
    frame = measure(node, state);
    paint(canvas, state, frame, drag);
    state.onRead?.(readings(state), group.cursor);
  });
  const observer = new ResizeObserver(draw);
  observer.observe(node);
  group.charts.add(draw);
  const untheme = onTheme(draw);

  const xAt = (/** @type {number} */ pixel) => {
    const { x, left, right } = /** @type {Frame} */ (frame);
    return x.value(Math.min(right, Math.max(left, pixel)));
  };
  set(node, {
    onpointermove: (/** @type {PointerEvent} */ event) => {
      if (!frame) return;
      if (drag) drag.to = event.offsetX;
      group.point(snapped(state.series, xAt(event.offsetX)));
    },
    onpointerleave: () => group.point(null),
    onpointerdown: (/** @type {PointerEvent} */ event) => {
      if (event.pointerType === "mouse") drag = { from: event.offsetX, to: event.offsetX };
    },
    onpointerup: () => {
      const done = drag;
      drag = null;
      if (!done || !frame || Math.abs(done.to - done.from) < DRAG_PX) return;
      group.setZoom([xAt(Math.min(done.from, done.to)), xAt(Math.max(done.from, done.to))]);
    },
    ondblclick: () => group.setZoom(null),
    onkeydown: (/** @type {KeyboardEvent} */ event) => moveByKey(event, state),
  });

  return {
    node,
    update(changes) {
      Object.assign(state, changes);
      if (changes.label) set(node, { "aria-label": changes.label });
      draw();
    },
    savePng(name) {
      const picture = h("canvas", { width: canvas.width, height: canvas.height });
      const context = /** @type {CanvasRenderingContext2D} */ (picture.getContext("2d"));
      context.fillStyle = colour("--bg");
      context.fillRect(0, 0, picture.width, picture.height);
      context.drawImage(canvas, 0, 0);
      picture.toBlob((blob) => blob && download(name, blob));
    },
    leave() {
      observer.disconnect();
      group.charts.delete(draw);
      untheme();
    },
  };
}

/**
 * Write series as CSV: one row an x.
 * @param {string} xName
 * @param {Series[]} series
 * @returns {Blob}
 */
export function csvOf(xName, series) {
  /** @type {Map<number, (number | string | null)[]>} */
  const rows = new Map();
  for (const [column, { x, y }] of series.entries())
    for (const [i, at] of x.entries()) {
      const row = rows.get(at) ?? Array(series.length).fill(null);
      rows.set(at, row);
      row[column] = y[i];
    }
  const quote = (/** @type {unknown} */ cell) =>
    /[",\n]/.test(String(cell ?? "")) ? `"${String(cell).replaceAll('"', '""')}"` : (cell ?? "");
  const lines = [...rows].sort(([a], [b]) => a - b).map(([at, row]) => [at, ...row]);
  const text = [[xName, ...series.map(({ name }) => name)], ...lines]
    .map((line) => line.map(quote).join(","))
    .join("\n");
  return new Blob([`${text}\n`], { type: "text/csv" });
}

/**
 * @typedef {{x: import("./scales.js").Scale, y: import("./scales.js").Scale, from: number, to: number,
 *   left: number, right: number, top: number, bottom: number, width: number, height: number}} Frame
 */

/** @param {HTMLElement} node @param {ChartOptions} state @returns {Frame} */
function measure(node, { series, group, hasAxes, hasEnds, upTo, isLogX, isLogY, height }) {
  const width = node.clientWidth;
  const gap = hasAxes ? { ...GAP, right: hasEnds ? ENDS_WIDTH : GAP.right } : BARE;
  const drawn = series.filter(({ x }) => x.length);
  const ends = drawn.flatMap(({ x }) => [x[0], x[x.length - 1]]);
  const [from, to] = group?.zoom ?? [Math.min(...ends, upTo ?? Number.POSITIVE_INFINITY), Math.max(...ends, upTo ?? 0)];
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  const take = (/** @type {number | string | null} */ v) => {
    if (typeof v !== "number" || !Number.isFinite(v)) return;
    if (v < low) low = v;
    if (v > high) high = v;
  };
  for (const { x, y, band } of drawn)
    for (let i = 0; i < x.length; i++) {
      if (x[i] < from || x[i] > to) continue;
      take(y[i]);
      if (band) [band.low[i], band.high[i]].forEach(take);
    }
  if (low > high) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low) * 0.05 - 1e-9, high + Math.abs(high) * 0.05 + 1e-9];
  const isLog = isLogY && low > 0;
  const pad = isLog ? (high / low) ** 0.04 : (high - low) * 0.04;
  const [bottom, top] = isLog ? [low / pad, high * pad] : [low - pad, high + pad];
  const box = { left: gap.left, right: width - gap.right, top: gap.top, bottom: height - gap.bottom };
  const firstX = isLogX && from <= 0 ? Math.min(1, to) : from; // step 0 has no logarithm
  return {
    ...box,
    width,
    height,
    from: firstX,
    to,
    x: scale([firstX, to], [box.left, box.right], { isLog: isLogX, ticks: Math.max(3, Math.round(width / 130)) }),
    y: scale([bottom, top], [box.bottom, box.top], { isLog, ticks: Math.max(2, Math.round(height / 60)) }),
  };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ChartOptions} state
 * @param {Frame} frame
 * @param {{from: number, to: number} | null} drag
 */
function paint(canvas, state, frame, drag) {
  const ratio = devicePixelRatio || 1;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  canvas.width = Math.round(frame.width * ratio);
  canvas.height = Math.round(frame.height * ratio);
  context.scale(ratio, ratio);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.lineJoin = context.lineCap = "round";
  if (state.hasAxes) paintAxes(context, state, frame);
  context.save();
  context.beginPath();
  context.rect(frame.left - 4, 0, frame.right - frame.left + 8, frame.height);
  context.clip();
  for (const series of state.series) paintSeries(context, series, state, frame);
  context.restore();
  if (state.hasEnds) paintEnds(context, state, frame);
  paintPointer(context, frame, state.group?.cursor ?? null, drag);
}

/** @param {CanvasRenderingContext2D} context @param {ChartOptions} state @param {Frame} frame */
function paintAxes(context, { formatX = whole, formatY = mark }, { x, y, left, right, width, height }) {
  context.strokeStyle = colour("--line");
  context.fillStyle = colour("--ink-3");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.beginPath();
  for (const tick of y.ticks) {
    const at = Math.round(y.place(tick)) + 0.5;
    context.moveTo(left, at);
    context.lineTo(right, at);
    context.fillText(formatY(tick), left - 8, at);
  }
  context.stroke();
  context.textBaseline = "alphabetic";
  for (const tick of x.ticks) {
    const at = x.place(tick);
    const isLast = at > right - 14;
    context.textAlign = isLast ? "right" : "center";
    context.fillText(formatX(tick), isLast ? Math.min(right + 6, width - 1) : at, height - 5);
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Series} series
 * @param {ChartOptions} state
 * @param {Frame} frame
 */
function paintSeries(context, series, { smoothing = 0, hasAxes }, frame) {
  const values = numbersOf(series);
  context.strokeStyle = context.fillStyle = colour(series.colour);
  if (series.band) paintBand(context, series, frame);
  context.setLineDash(series.dash ?? []);
  if (series.dots) {
    context.lineWidth = 1.25;
    trace(context, series.x, values, frame);
    context.setLineDash([]);
    paintDots(context, series.x, values, frame);
  } else {
    const isSmooth = smoothing > 0 && series.smooth !== false;
    if (isSmooth) {
      context.globalAlpha = FAINT;
      context.lineWidth = 1;
      trace(context, series.x, values, frame);
      context.globalAlpha = 1;
    }
    context.lineWidth = hasAxes ? 1.75 : 1.5;
    trace(context, series.x, isSmooth ? smoothedOf(series, smoothing) : values, frame);
  }
  context.setLineDash([]);
  paintFaults(context, series, frame);
}

/** @param {CanvasRenderingContext2D} context @param {number[]} steps @param {ArrayLike<number>} values @param {Frame} frame */
function trace(context, steps, values, { x, y, from, to }) {
  let isDown = false;
  context.beginPath();
  for (let i = 0; i < steps.length; i++) {
    if (!Number.isFinite(values[i]) || steps[i + 1] < from || steps[i - 1] > to) isDown = false;
    else if (isDown) context.lineTo(x.place(steps[i]), y.place(values[i]));
    else {
      context.moveTo(x.place(steps[i]), y.place(values[i]));
      isDown = true;
    }
  }
  context.stroke();
}

/** @param {CanvasRenderingContext2D} context @param {number[]} steps @param {ArrayLike<number>} values @param {Frame} frame */
function paintDots(context, steps, values, { x, y }) {
  context.fillStyle = colour("--bg");
  context.beginPath();
  for (let i = 0; i < steps.length; i++) {
    if (!Number.isFinite(values[i])) continue;
    context.moveTo(x.place(steps[i]) + 2.6, y.place(values[i]));
    context.arc(x.place(steps[i]), y.place(values[i]), 2.6, 0, 7);
  }
  context.fill();
  context.stroke();
}

/** @param {CanvasRenderingContext2D} context @param {Series} series @param {Frame} frame */
function paintBand(context, { x: steps, band }, { x, y }) {
  if (!band) return;
  context.globalAlpha = 0.16;
  context.beginPath();
  for (let i = 0; i < steps.length; i++) context.lineTo(x.place(steps[i]), y.place(band.high[i]));
  for (let i = steps.length - 1; i >= 0; i--) context.lineTo(x.place(steps[i]), y.place(band.low[i]));
  context.fill();
  context.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} context @param {Series} series @param {Frame} frame */
function paintFaults(context, { x: steps, y: values }, { x, bottom }) {
  context.fillStyle = colour("--bad");
  for (const [i, value] of values.entries())
    if (value != null && !Number.isFinite(value)) context.fillRect(x.place(steps[i]) - 1.5, bottom - 8, 3, 8);
}

/** @param {CanvasRenderingContext2D} context @param {ChartOptions} state @param {Frame} frame */
function paintEnds(context, { series, smoothing = 0 }, { y, right, top, bottom }) {
  context.textAlign = "left";
  context.textBaseline = "middle";
  const ends = series
    .filter(({ end, x }) => end !== false && x.length)
    .map((one) => ({
      one,
      at: y.place((one.dots || !smoothing ? numbersOf(one) : smoothedOf(one, smoothing)).at(-1) ?? 0),
    }))
    .filter(({ at }) => Number.isFinite(at))
    .sort((a, b) => a.at - b.at);
  let last = top - 14;
  for (const end of ends) end.at = last = Math.max(end.at, last + 14);
  let next = bottom + 14;
  for (const end of ends.reverse()) end.at = next = Math.min(end.at, next - 14);
  for (const { one, at } of ends) {
    context.fillStyle = colour(one.colour);
    context.fillText(one.name.length > 14 ? `${one.name.slice(0, 13)}…` : one.name, right + 8, at);
  }
}

/** @param {CanvasRenderingContext2D} context @param {Frame} frame @param {number | null} cursor @param {{from: number, to: number} | null} drag */
function paintPointer(context, { x, from, to, top, bottom }, cursor, drag) {
  context.fillStyle = colour("--ink");
  if (cursor != null && cursor >= from && cursor <= to) {
    context.globalAlpha = 0.35;
    context.fillRect(Math.round(x.place(cursor)), top, 1, bottom - top);
  }
  if (drag) {
    context.globalAlpha = 0.08;
    context.fillRect(Math.min(drag.from, drag.to), top, Math.abs(drag.to - drag.from), bottom - top);
  }
  context.globalAlpha = 1;
}

/** @param {ChartOptions} state @returns {Reading[]} */
function readings({ series, group }) {
  return series
    .filter(({ x }) => x.length)
    .map((one) => {
      const index = group?.cursor == null ? one.x.length - 1 : nearestIndex(one.x, group.cursor);
      return { series: one, index, x: one.x[index], y: one.y[index] };
    });
}

/** @param {KeyboardEvent} event @param {ChartOptions & {group: ChartGroup}} state */
function moveByKey(event, { series, group }) {
  const x = series[0]?.x ?? [];
  if (event.key === "Escape" && (group.zoom || group.cursor != null)) {
    group.cursor = null;
    group.setZoom(null);
  } else if (/^Arrow(Left|Right)$/.test(event.key) && x.length) {
    const at = group.cursor == null ? x.length - 1 : nearestIndex(x, group.cursor);
    const by = (event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 20 : 1);
    group.point(x[Math.min(x.length - 1, Math.max(0, at + by))]);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** @param {Series[]} series @param {number} x */
function snapped(series, x) {
  const steps = series.find((one) => one.x.length)?.x ?? [];
  return steps[nearestIndex(steps, x)] ?? null;
}

/** @type {WeakMap<object, {length: number, values: Float64Array, amount: number, smooth: Float64Array | null}>} */
const kept = new WeakMap();

/** Values as numbers, kept until the series grows. @param {Series} series */
function entryOf({ y }) {
  let entry = kept.get(y);
  if (entry?.length !== y.length) {
    const values = Float64Array.from(y, (v) => (typeof v === "number" ? v : Number.NaN));
    entry = { length: y.length, values, amount: 0, smooth: null };
    kept.set(y, entry);
  }
  return entry;
}

/** @param {Series} series */
const numbersOf = (series) => entryOf(series).values;

/** @param {Series} series @param {number} amount */
function smoothedOf(series, amount) {
  const entry = entryOf(series);
  if (!entry.smooth || entry.amount !== amount) entry.smooth = smoothed(entry.values, amount);
  entry.amount = amount;
  return entry.smooth;
}
