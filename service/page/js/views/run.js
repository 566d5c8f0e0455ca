/**
 * Run: one training, from the queue to its last checkpoint. A job of another kind has the same address, its progress and
 * its log.
 *
 * @typedef {import("../types.js").Job} Job
 * @typedef {import("../types.js").Run} Run
 * @typedef {{run: Run | null, job: Job | null, name: string}} Found
 * @typedef {{id: string, title: string, node: HTMLElement, update?: (found: Found) => void, leave?: () => void}} Part
 */
import { ApiError, get, isAbort } from "../api.js";
import { h, replace } from "../dom.js";
import { onEvent, onResume } from "../live.js";
import { skeleton as block, empty, problem, showProblem } from "../placeholders.js";
import { go, note, to } from "../router.js";
import { Curves } from "./run/curves.js";
import { RunHead } from "./run/run_head.js";

const RELOAD_MS = 300; // several changes come together
const OUTPUTS_MS = 4000; // between looks for new samples and checkpoints

/**
 * @param {import("../router.js").Route} route
 * @param {AbortSignal} signal
 * @returns {Promise<import("../main.js").View>}
 */
export async function render({ parts, query }, signal) {
  const find = () => (parts[0] === "jobs" ? findByJob(parts[1], signal) : findByRun(parts[1], signal));
  return new RunView(await find(), find, query, signal).view();
}

export const skeleton = () => h("div", { class: "page stack" }, block(80, 480), block(30, 420), block(380), block(300));

/** @param {string} id @param {AbortSignal} signal @returns {Promise<Found>} */
async function findByJob(id, signal) {
  const job = /** @type {Job} */ (await get(`/jobs/${encodeURIComponent(id)}`, { signal }));
  const run = job.kind === "train" && job.run ? await found(`/runs/${encodeURIComponent(job.run)}`, signal) : null;
  return { run, job, name: job.run ?? job.dataset ?? job.id };
}

/** @param {string} name @param {AbortSignal} signal @returns {Promise<Found>} */
async function findByRun(name, signal) {
  try {
    const run = /** @type {Run} */ (await get(`/runs/${encodeURIComponent(name)}`, { signal }));
    const job = run.job ? await found(`/jobs/${encodeURIComponent(run.job)}`, signal) : null;
    return { run, job, name };
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    const jobs = await get("/jobs", { query: { run: name, kind: "train", limit: 1 }, signal });
    if (!jobs.data.length || jobs.data[0].terminal) throw error;
    return { run: null, job: await get(`/jobs/${jobs.data[0].id}`, { signal }), name }; // it waits
  }
}

/** A record, or null where there is none. @param {string} path @param {AbortSignal} signal */
async function found(path, signal) {
  try {
    return await get(path, { signal });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  }
}

class RunView {
  trouble = h("div", { class: "run-trouble" });
  onPage = h("nav", { class: "on-page", "aria-label": "On this page" });
  body = h("div");

  /** @param {Found} known @param {() => Promise<Found>} find @param {Record<string, string>} query @param {AbortSignal} signal */
  constructor(known, find, query, signal) {
    this.found = known;
    this.find = find;
    this.query = query;
    this.signal = signal;
    /** @type {Part[]} */
    this.parts = [];
    /** @type {Curves | null} */
    this.curves = null;
    this.shape = "";
    this.reloading = 0;
    this.isReader = false; // the reader scrolled: the page stays where it is
    this.head = new RunHead(known, signal, () => this.reload());
    this.node = h("div", { class: "page run" }, this.head.node, this.trouble, this.onPage, this.body);
  }

  /** @returns {import("../main.js").View} */
  view() {
    const { name } = this.found;
    const off = [
      onEvent("status", (event) => this.isMine(event) && !event.snapshot && this.reloadSoon()),
      onEvent("progress", (event) => this.isMine(event) && this.showProgress(event)),
      onEvent("queue", ({ data }) => this.showPlace(data)),
      onResume(() => this.reload()),
    ];
    const scrolled = () => {
      this.isReader = true;
    };
    for (const type of ["wheel", "touchmove", "keydown"])
      addEventListener(type, scrolled, { passive: true, signal: this.signal });
    return {
      title: name,
      node: this.node,
      keys: this.keys(),
      ready: () => this.build(),
      leave: () => {
        for (const end of off) end();
        clearTimeout(this.reloading);
        for (const part of this.parts) part.leave?.();
      },
    };
  }

  /** @param {{job: string, run?: string | null}} event */
  isMine(event) {
    const { job, run, name } = this.found;
    return event.job === job?.id || (event.run != null && event.run === (run?.name ?? name));
  }

  /** What the page consists of: another one needs other sections. */
  shapeNow() {
    const { run, job } = this.found;
    if (job && job.kind !== "train") return "job";
    return job?.status === "queued" && !job.progress.step ? "waiting" : run || job?.started_at ? "run" : "waiting";
  }

  /** Show all sections: the first at once, the others after the first paint. */
  async build() {
    this.shape = this.shapeNow();
    for (const part of this.parts) part.leave?.();
    this.parts = [];
    this.curves = null;
    replace(this.body);
    if (this.shape === "run" && this.found.job) {
      this.curves = new Curves(this.found, this.query, this.signal);
      this.add(this.curves);
    }
    const shape = this.shape;
    try {
      if (shape === "waiting") {
        const { WaitingPart } = await import("./run/waiting_run.js");
        if (this.shape === shape) this.add(new WaitingPart(this.found, this.signal));
      } else if (shape === "run" && this.found.run) {
        const [{ HeadsByStep }, { Samples, Checkpoints }] = await Promise.all([
          import("./run/heads_by_step.js"),
          import("./run/run_files.js"),
        ]);
        if (this.signal.aborted || this.shape !== shape) return;
        this.add(new HeadsByStep(this.found, this.query, this.signal));
        this.add(new Samples(this.found, this.signal));
        this.add(new Checkpoints(this.found, this.signal, () => this.reload()));
      }
      const { Log, Configuration } = await import("./run/log_and_configuration.js");
      if (this.signal.aborted || this.shape !== shape) return;
      if (shape !== "waiting" && this.found.job) this.add(new Log(this.found, this.signal));
      if (this.found.run?.config ?? this.found.job?.config) this.add(new Configuration(this.found, this.signal));
      this.drawOnPage();
      this.jumpToStart();
    } catch (error) {
      showProblem(this.trouble, error, () => this.build());
    }
  }

  /** @param {Part} part */
  add(part) {
    this.parts.push(part);
    this.body.append(part.node);
  }

  drawOnPage() {
    const link = (/** @type {Part} */ { id, title }) =>
      h("button", { type: "button", class: "nav-link", onclick: () => this.jump(id) }, title);
    replace(this.onPage, this.parts.length > 1 && this.parts.map(link));
  }

  /** @param {string} id */
  jump(id) {
    this.isReader = true;
    note({ at: id });
    document.getElementById(id)?.scrollIntoView({ behavior: "smooth" });
  }

  /** Sections above grow when their data come, so the one of the address is looked for until the reader scrolls. */
  jumpToStart() {
    const wanted = this.query.at && document.getElementById(this.query.at);
    if (!wanted) return;
    const scroll = () => !this.isReader && wanted.scrollIntoView({ behavior: "instant" });
    const observer = new ResizeObserver(scroll);
    observer.observe(this.body);
    this.signal.addEventListener("abort", () => observer.disconnect());
  }

  reloadSoon() {
    clearTimeout(this.reloading);
    this.reloading = setTimeout(() => this.reload(), RELOAD_MS);
  }

  async reload() {
    try {
      this.found = await this.find();
      replace(this.trouble);
      this.head.update(this.found);
      if (this.shapeNow() !== this.shape) return this.build();
      for (const part of this.parts) part.update?.(this.found);
    } catch (error) {
      if (isAbort(error)) return;
      if (error instanceof ApiError && error.status === 404) this.showDeleted();
      else
        replace(
          this.trouble,
          problem(error, () => this.reload()),
        );
    }
  }

  showDeleted() {
    for (const part of this.parts) part.leave?.();
    this.parts = [];
    this.shape = "deleted";
    const sentence = `${this.found.name} was deleted. `;
    replace(this.node, h("h1", {}, this.found.name), empty(sentence, h("a", { href: to("/") }, "Go to the jobs")));
  }

  /** @param {Record<string, any>} event */
  showProgress({ job: _, ...progress }) {
    const { job } = this.found;
    if (!job) return;
    const isValidated = progress.val_loss !== job.progress.val_loss;
    if (this.shape === "waiting") return this.reloadSoon();
    Object.assign(job.progress, progress);
    this.head.showProgress(job);
    this.curves?.grow(job.progress);
    if (isValidated && !this.reloading) this.reloading = setTimeout(() => this.reloadOutputs(), OUTPUTS_MS);
  }

  /** After a validation: new checkpoints, samples and numbers of heads. */
  async reloadOutputs() {
    this.reloading = 0;
    await this.reload();
  }

  /** @param {(import("../types.js").QueuePlace & {job: string})[]} places */
  showPlace(places) {
    const { job } = this.found;
    if (job?.status !== "queued") return;
    job.queue = places.find((place) => place.job === job.id) ?? null;
    for (const part of this.parts) part.update?.(this.found);
  }

  /** @returns {import("../keys.js").Key[]} */
  keys() {
    return [
      {
        key: ["1", "2", "3", "4", "5", "6"],
        what: "jump to a section",
        run: ({ key }) => {
          const part = this.parts[Number(key) - 1];
          if (part) this.jump(part.id);
        },
      },
      { key: "l", what: "loss: log or linear", run: () => this.curves?.toggleLog() },
      { key: "a", what: "attention of this run", run: () => go(to(["attention", this.found.name, 0])) },
      { key: "/", what: "find in the log", run: () => document.getElementById("find-in-log")?.focus() },
      { key: "Escape", what: "whole range of the curves", run: () => this.curves?.resetZoom() },
    ];
  }
}
