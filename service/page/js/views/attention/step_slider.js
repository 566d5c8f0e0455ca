/**
 * The checkpoints of a run by step: a slider, the validation loss behind it, and Play.
 *
 * @typedef {{file: string, step: number, val_loss: number | null}} Checkpoint
 * @typedef {{step: number, reference: string, loss: number | null}} Stop a step with a checkpoint
 */
import { h, replace, set, svg } from "../../dom.js";
import { whole } from "../../format.js";

const PLAY_MS = 300;
const CALM_MS = 1200; // for who wants little motion
const PERIODIC = /^model_\d+\.pt$/;
const [WIDTH, HEIGHT] = [100, 22];
const PLAY = "M2.5 1.2 10.5 6l-8 4.8z";
const PAUSE = "M2.5 1.5h2.5v9H2.5zM7 1.5h2.5v9H7z";

/**
 * Steps that have a checkpoint. Of several files of one step, one is asked for: that of the step itself, or the best.
 * @param {Checkpoint[]} checkpoints
 * @returns {Stop[]}
 */
export function stopsOf(checkpoints) {
  const reference = (/** @type {Checkpoint} */ { file, step }) =>
    PERIODIC.test(file) ? `step=${step}` : file.replace(/^model_(best|final|latest)\.pt$/, "$1");
  const rank = (/** @type {string} */ name) => ["step", "best", "final", "latest"].indexOf(name.split("=")[0]);
  /** @type {Map<number, Stop>} */
  const stops = new Map();
  for (const checkpoint of checkpoints) {
    const stop = { step: checkpoint.step, reference: reference(checkpoint), loss: checkpoint.val_loss };
    const other = stops.get(stop.step);
    if (!other || rank(stop.reference) < rank(other.reference)) stops.set(stop.step, stop);
  }
  return [...stops.values()].sort((a, b) => a.step - b.step);
}

/**
 * Make the slider.
 * @param {(stop: Stop) => Promise<unknown>} onMove resolves when the picture of that step is there
 */
export function stepSlider(onMove) {
  const play = h("button", { type: "button", class: "btn quiet", title: "Run through the checkpoints (Space)" });
  const input = h("input", { type: "range", min: 0, "aria-label": "Step of the checkpoint" });
  const spark = svg("svg", { class: "step-loss", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" });
  const now = h("output", { class: "step-now" });
  const node = h("div", { class: "attn-step" }, play, h("div", { class: "step-track" }, spark, input), now);
  /** @type {Stop[]} */
  let stops = [];
  let at = 0;
  let turn = 0; // of Play; 0: it is not playing

  const draw = () => {
    const stop = stops[at];
    input.value = String(at);
    set(input, { "aria-valuetext": stop ? `step ${whole(stop.step)}` : "no checkpoint" });
    if (stop)
      replace(
        now,
        h("b", {}, `step ${whole(stop.step)}`),
        h("span", { class: "faint" }, `val loss ${stop.loss?.toFixed(3) ?? "not measured"}`),
      );
    const icon = svg("path", { d: turn ? PAUSE : PLAY, fill: "currentColor" });
    replace(play, svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": true }, icon));
    play.append(turn ? "Pause" : "Play");
  };
  /** @param {number} to @returns {Promise<unknown>} */
  const move = (to) => {
    const next = Math.max(0, Math.min(stops.length - 1, to));
    if (next === at || !stops[next]) return Promise.resolve();
    at = next;
    draw();
    return onMove(stops[at]);
  };
  const stop = () => {
    turn = 0;
    draw();
  };
  const toggle = async () => {
    if (turn || stops.length < 2) return stop();
    turn = Date.now();
    const mine = turn;
    if (at === stops.length - 1) at = -1;
    const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? CALM_MS : PLAY_MS;
    while (turn === mine && at < stops.length - 1) {
      await Promise.all([move(at + 1), new Promise((resolve) => setTimeout(resolve, pause))]);
    }
    if (turn === mine) stop();
  };
  set(play, { onclick: toggle });
  set(input, {
    oninput: () => {
      turn = 0;
      move(Number(input.value));
    },
  });
  return {
    node,
    input,
    toggle,
    leave: stop,
    /** Another step, by hand. @param {number} by */
    moveBy(by) {
      turn = 0;
      return move(at + by);
    },
    /** Checkpoints beside the chosen one. @returns {Stop[]} */
    neighbours: () => [stops[at + 1], stops[at - 1]].filter((other) => other),
    /**
     * Show other checkpoints, or another one of them.
     * @param {Stop[]} next
     * @param {number | null} step null: none of them
     */
    update(next, step) {
      stops = next;
      at = stops.findIndex((candidate) => candidate.step === step);
      set(input, { max: Math.max(0, stops.length - 1), disabled: stops.length < 2 });
      set(play, { disabled: stops.length < 2 });
      replace(spark, svg("path", { d: lossPath(stops), "vector-effect": "non-scaling-stroke" }));
      draw();
    },
  };
}

/** The validation loss, on a logarithmic scale, above the places of the slider. @param {Stop[]} stops */
function lossPath(stops) {
  const known = stops.flatMap(({ loss: value }, i) => (value ? [{ i, value: Math.log(value) }] : []));
  const values = known.map(({ value }) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = known.map(({ i, value }) => {
    const x = (i / (stops.length - 1)) * WIDTH;
    const y = (1 - (value - low) / (high - low || 1)) * (HEIGHT - 2) + 1;
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return points.length > 1 ? `M${points.join("L")}` : "";
}
