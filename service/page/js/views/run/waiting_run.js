/**
 * A run that waits: its place, why it does not run yet, and what it will cost.
 *
 * @typedef {import("../run.js").Found} Found
 */
import { isAbort, send } from "../../api.js";
import { h, replace } from "../../dom.js";
import { bytes, count, duration, plural, range, whole } from "../../format.js";
import { to } from "../../router.js";
import { fact } from "./run_head.js";

export class WaitingPart {
  id = "waiting";
  title = "Waiting";
  place = h("p", { class: "waiting-place" });
  reasons = h("ul", { class: "waiting-reasons" });
  budget = h("p", { class: "facts" });

  /** @param {Found} found @param {AbortSignal} signal */
  constructor(found, signal) {
    this.signal = signal;
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Waiting" },
      h("div", { class: "section-head" }, h("h2", {}, "Waiting")),
      this.place,
      this.reasons,
      this.budget,
    );
    this.update(found);
    this.loadBudget(found);
  }

  /** @param {Found} found */
  update({ job }) {
    if (!job) return;
    const { queue, waiting_on: on = [] } = job;
    const eta = queue?.eta_s && `, starts in ${range(queue.eta_s)}`;
    replace(this.place, queue ? ["Place ", h("b", {}, queue.position), ` in the queue${eta ?? ""}`] : "In the queue");
    replace(
      this.reasons,
      on.map(({ job: id, kind, name, status, eta_s: left }) => {
        const verb = kind === "prepare" ? "dataset " : "";
        const end = left ? `, in ${range(left)}` : "";
        return h("li", {}, `after ${verb}`, h("a", { href: to(["jobs", id]) }, name), ` is ready (${status}${end})`);
      }),
    );
  }

  /** @param {Found} found */
  async loadBudget({ job }) {
    if (!job?.config) return;
    try {
      const reply = await send("POST", "/jobs", {
        query: { validate_only: true },
        json: job.config,
        signal: this.signal,
      });
      const { budget, estimate } = /** @type {import("../../types.js").Validation} */ (reply);
      if (!budget) return;
      const { schedule } = budget;
      replace(
        this.budget,
        fact("parameters", whole(budget.parameters)),
        fact("memory", bytes(budget.memory.required_bytes)),
        fact("disk", bytes(budget.disk.total_bytes)),
        fact("", plural(schedule.steps, "step")),
        fact("tokens", count(schedule.tokens)),
        schedule.epochs != null && fact("epochs", schedule.epochs.toFixed(2)),
        fact("FLOPs a token", count(budget.flops_per_token)),
        estimate &&
          fact(
            "time",
            estimate.time_s[0] === estimate.time_s[1] ? duration(estimate.time_s[0]) : range(estimate.time_s),
          ),
      );
    } catch (error) {
      if (!isAbort(error)) return; // without a budget the page shows none
    }
  }
}
