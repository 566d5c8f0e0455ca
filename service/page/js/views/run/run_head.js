/**
 * Head of a run: its heads, state and facts, what one can do with it, and why it failed.
 *
 * @typedef {import("../run.js").Found} Found
 * @typedef {import("../../types.js").Job} Job
 */
import { get, now, send } from "../../api.js";
import { progressBar, stateMark } from "../../controls.js";
import { h, replace } from "../../dom.js";
import { bytes, clock, duration, whole } from "../../format.js";
import { headMap, headsText } from "../../glyph.js";
import { confirmed, toast } from "../../overlays.js";
import { showProblem } from "../../placeholders.js";
import { go, to } from "../../router.js";

const MAP_PX = 76;
/** @type {Record<string, [string, string]>} verb on the button, and what the toast says */
const ACTIONS = {
  pause: ["Pause", "saves its state and pauses"],
  resume: ["Resume", "is back in the queue"],
  retry: ["Retry", "is back in the queue"],
  cancel: ["Cancel", "is cancelled"],
};

export class RunHead {
  state = h("span");
  facts = h("p", { class: "facts" });
  actions = h("div", { class: "run-actions" });
  notes = h("div", { class: "run-notes" });
  trouble = h("div");
  foot = h("p", { class: "facts run-foot" });
  bar = progressBar("done", 0);

  /** @param {Found} found @param {AbortSignal} signal @param {() => Promise<void>} onChanged */
  constructor(found, signal, onChanged) {
    this.signal = signal;
    this.onChanged = onChanged;
    this.map = h("div");
    this.progress = h("div", { class: "run-progress" }, this.bar.node, this.foot);
    this.title = h("h1", {}, found.name);
    this.node = h(
      "header",
      {},
      h(
        "div",
        { class: "run-head" },
        this.map,
        h("div", { class: "run-name" }, h("div", { class: "run-title" }, this.title, this.state), this.facts),
        this.actions,
      ),
      this.trouble,
      this.progress,
      this.notes,
    );
    this.shown = "";
    this.parameters = 0;
    this.update(found);
    if (found.run) this.loadParameters(found.name);
  }

  /** @param {string} name */
  async loadParameters(name) {
    const report = await get(`/runs/${encodeURIComponent(name)}/report`, { signal: this.signal }).catch(() => null);
    this.parameters = report?.budget?.parameters ?? 0;
    replace(this.facts, facts(/** @type {Found} */ (this.found), this.parameters));
  }

  /** @param {Found} found */
  update(found) {
    const { run, job, name } = found;
    this.found = found;
    const status = job?.status ?? run?.status ?? "";
    const model = run?.model ?? job?.model;
    const colour = run?.colour ?? job?.colour;
    this.node.className = colour == null ? "" : `run-${colour % 8}`;
    const version = JSON.stringify([
      status,
      model,
      job?.allowed_actions,
      run?.checkpoint_count,
      job?.error,
      job?.warnings,
    ]);
    if (version !== this.shown) {
      this.shown = version;
      const heads = model?.heads;
      const href = (/** @type {number} */ layer, /** @type {number} */ head) =>
        to(["attention", name, 0], { layer, head });
      replace(this.map, heads && headMap(heads, { href, pitch: Math.min(11, MAP_PX / Math.max(...heads)) }).node);
      replace(this.title, job && job.kind !== "train" ? `${job.kind} ${name}` : name);
      replace(this.state, stateMark(status));
      replace(this.actions, this.buttons(found));
      replace(
        this.notes,
        failure(job, () => this.act("retry")),
        warnings(job),
      );
    }
    replace(this.facts, facts(found, this.parameters));
    this.showProgress(job);
  }

  /** @param {Job | null} job */
  showProgress(job) {
    const isActive = job && ["running", "stopping", "paused"].includes(job.status);
    this.progress.classList.toggle("hidden", !isActive);
    if (!isActive) return;
    const { step, max_steps: most, done, of, unit, eta_s: left, tokens_per_s: speed } = job.progress;
    const [at, end, what] = most ? [step, most, "step"] : [done, of, unit ?? ""];
    this.bar.update(end ? (at ?? 0) / end : 0);
    replace(
      this.foot,
      end != null &&
        fact(what === "step" ? "step" : "", `${whole(at)} of ${whole(end)}${what === "step" ? "" : ` ${what}`}`),
      speed != null && fact("tokens/s", whole(speed)),
      left != null &&
        job.status === "running" &&
        h("span", {}, `about ${duration(left)} left, until ${clock(now() + left * 1000)}`),
    );
  }

  /** @param {Found} found */
  buttons({ run, job, name }) {
    const allowed = job?.allowed_actions ?? [];
    const hasModel = (run?.checkpoint_count ?? run?.checkpoints?.length ?? 0) > 0;
    const act = (/** @type {string} */ action) =>
      allowed.includes(action) &&
      h("button", { type: "button", class: "btn", onclick: () => this.act(action) }, ACTIONS[action][0]);
    const isOver = job ? allowed.includes("delete") : run != null;
    return [
      ["pause", "resume", "cancel", "retry"].map(act),
      hasModel && h("a", { class: "btn", href: to(["attention", name, 0]) }, "Attention"),
      run && h("a", { class: "btn quiet again", href: to("/", { from: name }) }, "Run again"),
      isOver && h("button", { type: "button", class: "btn quiet", onclick: () => this.delete() }, "Delete"),
    ];
  }

  /** @param {string} action */
  async act(action) {
    const { job, name } = /** @type {Found} */ (this.found);
    try {
      await send("POST", `/jobs/${job?.id}/${action}`, { signal: this.signal });
      replace(this.trouble);
      toast(`${name} ${ACTIONS[action][1]}.`);
      await this.onChanged();
    } catch (error) {
      showProblem(this.trouble, error, () => this.act(action));
    }
  }

  async delete() {
    const { run, job, name } = /** @type {Found} */ (this.found);
    const address = `/runs/${encodeURIComponent(name)}`;
    try {
      const size = run && (await send("DELETE", address, { query: { dry_run: true }, signal: this.signal }));
      const what = size ? `Delete ${name} and free ${bytes(size.size_bytes)}?` : `Delete the record of ${name}?`;
      const refusals = (size?.warnings ?? []).map((/** @type {{detail: string}} */ { detail }) => h("p", {}, detail));
      const text = size ? `Its ${size.checkpoints} checkpoints, pictures and exports are lost.` : "Its files stay.";
      if (!(await confirmed(what, [h("p", {}, text), refusals], "Delete"))) return;
      if (run) await send("DELETE", address);
      if (job) await send("DELETE", `/jobs/${job.id}`);
      toast(`${name} is deleted.`);
      go(to("/"));
    } catch (error) {
      showProblem(this.trouble, error, () => this.delete());
    }
  }
}

/** @param {string} term @param {import("../../dom.js").Child} value */
export const fact = (term, value) => h("span", {}, term && `${term} `, h("b", {}, value));

/** @param {Found} found @param {number} parameters */
function facts({ run, job }, parameters) {
  const config = run?.config ?? job?.config;
  const model = run?.model ?? job?.model;
  const from = job?.started_at ? Date.parse(job.started_at) : 0;
  const until = job?.finished_at ? Date.parse(job.finished_at) : 0;
  const dataset = job?.dataset;
  return [
    model && fact("heads", headsText(model.heads)),
    model && fact("width", whole(model.n_embd)),
    parameters > 0 && fact("parameters", whole(parameters)),
    model && job?.kind !== "train" && job != null && fact("kind", job.kind),
    dataset && h("span", {}, "dataset ", h("b", {}, dataset)),
    job?.worker && fact("device", [job.worker.device, config?.device?.dtype].filter(Boolean).join(", ")),
    run && fact("size", bytes(run.size_bytes)),
    job?.priority ? fact("priority", job.priority) : null,
    from > 0 && until > 0 && fact("took", duration((until - from) / 1000)),
    from > 0 && !until && fact("began", clock(from, now())),
    run && !job && h("span", {}, "no job: made by hand, imported, or its record was deleted"),
  ];
}

/** @param {Job | null} job @param {() => void} retry */
function failure(job, retry) {
  if (!job?.error) return null;
  const { code, detail, step, hint } = job.error;
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", {}, h("strong", {}, code), step != null && ` at step ${whole(step)}`),
    h("p", {}, detail),
    hint && h("p", {}, hint),
    job.allowed_actions.includes("retry") && h("button", { type: "button", class: "btn", onclick: retry }, "Retry"),
  );
}

/** @param {Job | null} job */
const warnings = (job) =>
  (job?.warnings ?? []).map(({ code, detail }) =>
    h("p", { class: "notice" }, h("b", {}, code.replaceAll("_", " ")), ` ${detail}`),
  );
