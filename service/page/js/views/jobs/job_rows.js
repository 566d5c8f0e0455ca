/**
 * One job: as a card while it runs, as a row while it waits and when it is over.
 *
 * @typedef {import("../../types.js").Job} Job
 */
import { get, now, send } from "../../api.js";
import { progressBar, stateMark } from "../../controls.js";
import { h, replace } from "../../dom.js";
import { ago, clock, duration, loss, range, whole } from "../../format.js";
import { glyphBox, headsText } from "../../glyph.js";
import { announce, toast } from "../../overlays.js";
import { runColour } from "../../palette.js";
import { problem, showProblem } from "../../placeholders.js";
import { to } from "../../router.js";

const CURVE_POINTS = 600;
const SPOKEN = [0.25, 0.5, 0.75]; // progress that listeners hear
/** @type {Record<string, string>} */
const DOES = {
  pause: "saves its state and pauses",
  cancel: "is cancelled",
  resume: "is back in the queue",
  retry: "is back in the queue",
};
/** @type {Record<string, string>} */
const KINDS = {
  export: "export for transformers",
  test: "test",
  ablate: "loss without each head",
  import: "import of a model",
};

/** @param {Job} job */
export const nameOf = (job) => job.run ?? job.dataset ?? job.id;

/**
 * Where a job leads: to what it makes, once that is there.
 * @param {Job} job
 */
export function addressOf(job) {
  if (job.kind === "train" && job.run && job.status !== "queued") return to(["runs", job.run]);
  return to(["jobs", job.id]);
}

/** Class that sets the colour of a job's run. @param {Job} job */
const colourClass = (job) => (job.colour == null ? "" : `run-${job.colour % 8}`);

/** @param {Job} job @param {{width: number, height: number, pitch?: number}} size */
const mark = (job, size) =>
  glyphBox(job.model?.heads, { ...size, word: job.kind === "prepare" ? "data" : job.kind === "train" ? "" : "file" });

/** A job that runs. Its loss stands on the progress bar and has its length: the bar is the axis. */
export class RunningCard {
  /** @param {Job} job @param {AbortSignal} signal @param {() => void} onChanged */
  constructor(job, signal, onChanged) {
    this.job = job;
    this.signal = signal;
    this.onChanged = onChanged;
    this.series = {
      name: "loss",
      colour: runColour(job.colour),
      x: /** @type {number[]} */ ([]),
      y: /** @type {(number | string | null)[]} */ ([]),
    };
    /** @type {ReturnType<typeof import("../../parts/chart.js").lineChart> | null} */
    this.chart = null;
    this.spoken = this.done();
    this.state = h("div", {});
    this.figures = h("dl", { class: "figures" });
    this.actions = h("div", { class: "card-actions" });
    this.trouble = h("div", {});
    this.curve = h("div", { class: job.kind === "train" ? "card-curve" : "" });
    this.bar = progressBar(nameOf(job), this.done());
    this.foot = h("p", { class: "card-foot" });
    const about =
      job.kind === "train" || !KINDS[job.kind]
        ? `${job.kind}${job.dataset && job.run ? ` on ${job.dataset}` : ""}`
        : KINDS[job.kind];
    this.node = h(
      "article",
      { class: `card job-card ${colourClass(job)}`, "data-address": addressOf(job), "aria-label": nameOf(job) },
      h(
        "div",
        { class: "card-head" },
        job.model && glyphBox(job.model.heads, { width: 64, height: 56, pitch: 6 }),
        h(
          "div",
          { class: "card-name" },
          h("h3", {}, h("a", { class: "name", href: addressOf(job) }, nameOf(job))),
          h("p", { class: "faint" }, about),
          this.state,
        ),
        this.figures,
        this.actions,
      ),
      this.curve,
      this.bar.node,
      this.foot,
      this.trouble,
    );
    this.update(job);
    if (job.kind === "train") this.loadCurve();
  }

  async loadCurve() {
    try {
      const [{ lineChart }, metrics] = await Promise.all([
        import("../../parts/chart.js"),
        get(`/jobs/${this.job.id}/metrics`, { query: { name: "loss", max_points: CURVE_POINTS }, signal: this.signal }),
      ]);
      const { steps = [], values = [] } = metrics.series.loss ?? {};
      const newer = this.series.x.findIndex((x) => x > (steps.at(-1) ?? 0));
      this.series.x = [...steps, ...(newer < 0 ? [] : this.series.x.slice(newer))];
      this.series.y = [...values, ...(newer < 0 ? [] : this.series.y.slice(newer))];
      this.chart ??= lineChart({ ...this.options(), height: 60, hasAxes: false, smoothing: 0.9, isLogY: true });
      replace(this.curve, this.chart.node);
    } catch (error) {
      showProblem(this.curve, error, () => this.loadCurve());
    }
  }

  options() {
    const { loss: value, max_steps: most } = this.job.progress;
    return { label: `Loss so far, now ${loss(value)}`, series: [{ ...this.series }], upTo: most ?? undefined };
  }

  done() {
    const { step, max_steps: most, done, of } = this.job.progress;
    return Math.min(1, (step ?? done ?? 0) / (most ?? of ?? Number.POSITIVE_INFINITY) || 0);
  }

  /** @param {Job} job the same one, later */
  update(job) {
    this.job = job;
    const { step, loss: value, val_loss: validation, tokens_per_s: speed } = job.progress;
    if (step != null && step > (this.series.x.at(-1) ?? -1) && value != null) {
      this.series.x.push(step);
      this.series.y.push(value);
      if (this.series.x.length > 2 * CURVE_POINTS) this.loadCurve(); // it has doubled
    }
    this.chart?.update(this.options());
    if (this.state.dataset.status !== job.status) {
      this.state.dataset.status = job.status;
      replace(this.state, stateMark(job.status));
      replace(
        this.actions,
        actionButton(job, "pause", "btn", this.act),
        actionButton(job, "cancel", "btn quiet", this.act),
      );
    }
    const figure = (/** @type {string} */ name, /** @type {string} */ text) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, text));
    if (job.kind === "train")
      replace(
        this.figures,
        figure("loss", loss(value)),
        figure("val loss", loss(validation)),
        figure("tokens/s", whole(speed)),
      );
    this.bar.update(this.done());
    replace(this.foot, footOf(job));
    const passed = SPOKEN.findLast((share) => this.done() >= share && this.spoken < share);
    if (passed) announce(`${nameOf(job)}: ${passed * 100} %`);
    this.spoken = Math.max(this.spoken, this.done());
  }

  act = act(
    (error) => replace(this.trouble, problem(error, null)),
    () => this.onChanged(),
  );

  leave() {
    this.chart?.leave();
  }
}

/** @param {Job} job */
function footOf({ progress: { step, max_steps: most, done, of, unit, eta_s: left } }) {
  const ends = now() + (left ?? 0) * 1000;
  return [
    step != null && most != null && h("span", {}, "step ", h("b", {}, whole(step)), ` of ${whole(most)}`),
    step == null &&
      done != null &&
      h("span", {}, h("b", {}, whole(done)), of ? ` of ${whole(of)}` : "", ` ${unit ?? ""}`),
    left != null && h("span", {}, h("b", {}, `about ${duration(left)} left`), `, until ${clock(ends, now())}`),
  ];
}

/**
 * A job that waits: its place, when it may start, or why not.
 * @param {{job: Job, latest: number, needs: Job[], above: Job | null}} facts latest: end of the time axis, in seconds
 * @param {() => void} onChanged
 */
export function waitingRow({ job, latest, needs, above }, onChanged) {
  const trouble = h("div", { class: "row-trouble" });
  const run = act((error) => replace(trouble, problem(error, null)), onChanged);
  const times = job.queue?.eta_s;
  const first = needs.map((other) => (other.kind === "prepare" ? `dataset ${other.dataset}` : nameOf(other)));
  const why = first.length ? `after ${first.join(", ")} is ready` : times ? `starts in ${range(times)}` : "";
  const raise = async () => {
    try {
      await send("PATCH", `/jobs/${job.id}`, { json: { priority: (above?.priority ?? job.priority) + 1 } });
      onChanged();
    } catch (error) {
      replace(trouble, problem(error, null));
    }
  };
  return h(
    "li",
    { class: `waiting ${colourClass(job)}`, "data-address": addressOf(job) },
    h("span", { class: "place" }, job.queue?.position ?? "–"),
    mark(job, { width: 44, height: 28 }),
    h(
      "span",
      { class: "two-lines" },
      h("a", { class: "name", href: addressOf(job) }, nameOf(job)),
      h("span", { class: "faint" }, job.model ? headsText(job.model.heads) : job.kind),
    ),
    h("span", { class: "why muted" }, why),
    times &&
      !first.length &&
      h(
        "span",
        { class: "when", "aria-hidden": true },
        h("span", {
          vars: { "--from": `${(100 * times[0]) / latest}%`, "--to": `${100 - (100 * times[1]) / latest}%` },
        }),
      ),
    h("span", { class: "rank faint" }, job.priority ? `priority ${job.priority}` : ""),
    h(
      "span",
      { class: "row-buttons" },
      above &&
        job.queue &&
        h(
          "button",
          {
            type: "button",
            class: "btn quiet small",
            "aria-label": `Move ${nameOf(job)} up`,
            title: "Move up",
            onclick: raise,
          },
          "↑",
        ),
      actionButton(job, "cancel", "btn quiet small", run),
    ),
    trouble,
  );
}

/**
 * A job that is over, or paused.
 * @param {Job} job
 * @param {{isTicked: boolean, onTick: (is: boolean) => void, onChanged: () => void}} options
 */
export function finishedRow(job, { isTicked, onTick, onChanged }) {
  const { step, max_steps: most, val_loss: validation, tokens_per_s: speed } = job.progress;
  const isTraining = job.kind === "train";
  const box =
    isTraining &&
    job.run &&
    h("input", {
      type: "checkbox",
      "aria-label": `Choose ${job.run}`,
      checked: isTicked,
      onchange: () => onTick(/** @type {HTMLInputElement} */ (box).checked),
    });
  const second = h("div", { class: job.error ? "why-failed" : "faint" }, job.error ? failure(job.error) : aboutOf(job));
  const run = act((error) => replace(second, error instanceof Error ? error.message : String(error)), onChanged);
  const resume = actionButton(job, "resume", "link-btn", run);
  const seconds =
    job.started_at && job.finished_at ? (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000 : null;
  const steps = step === most ? whole(step) : [whole(step), h("span", { class: "faint" }, ` of ${whole(most)}`)];
  const cell = (/** @type {import("../../dom.js").Child} */ content, kind = "num wide") =>
    h("td", { class: kind }, content);
  return h(
    "tr",
    { class: colourClass(job), "data-address": addressOf(job) },
    cell(box, "pick"),
    cell(
      h(
        "div",
        { class: "run-cell" },
        mark(job, { width: 40, height: 28 }),
        h("div", { class: "two-lines" }, h("a", { class: "name", href: addressOf(job) }, nameOf(job)), second),
      ),
      "",
    ),
    cell([stateMark(job.status), resume && [" ", resume]], "nowrap"),
    cell(isTraining ? loss(validation) : "", "num"),
    cell(isTraining && step != null ? steps : ""),
    cell(speed ? whole(speed) : ""),
    cell(seconds == null ? "" : duration(seconds)),
    cell(ago(job.history.at(-1)?.time ?? job.created_at, now()), "num wide muted"),
  );
}

/** @param {NonNullable<Job["error"]>} error */
const failure = ({ code, step }) => `${code}${step == null ? "" : ` at step ${whole(step)}`}`;

/** @param {Job} job */
function aboutOf(job) {
  if (job.kind === "prepare")
    return job.progress.of ? `dataset, ${whole(job.progress.of)} ${job.progress.unit ?? "documents"}` : "dataset";
  if (job.kind !== "train") return KINDS[job.kind] ?? job.kind;
  return job.model ? `heads ${headsText(job.model.heads)}` : `on ${job.dataset}`;
}

/**
 * @param {Job} job
 * @param {"pause" | "cancel" | "resume"} action
 * @param {string} look
 * @param {(job: Job, action: string) => void} run
 */
function actionButton(job, action, look, run) {
  if (!job.allowed_actions.includes(action)) return null;
  const text = action[0].toUpperCase() + action.slice(1);
  return h(
    "button",
    { type: "button", class: look, "aria-label": `${text} ${nameOf(job)}`, onclick: () => run(job, action) },
    text,
  );
}

/**
 * @param {(error: unknown) => void} onError
 * @param {() => void} onDone
 * @returns {(job: Job, action: string) => Promise<void>}
 */
function act(onError, onDone) {
  return async (job, action) => {
    try {
      await send("POST", `/jobs/${job.id}/${action}`);
      toast(`${nameOf(job)} ${DOES[action]}.`);
      onDone();
    } catch (error) {
      onError(error);
    }
  };
}
