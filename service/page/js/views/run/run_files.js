/**
 * What a training wrote: texts at three steps side by side, and its checkpoints.
 *
 * @typedef {import("../run.js").Found} Found
 * @typedef {import("../../types.js").Checkpoint} Checkpoint
 * @typedef {{step: number, texts: string[]}} Sample
 */
import { get, isAbort, send } from "../../api.js";
import { h, replace } from "../../dom.js";
import { bytes, loss, plural, whole } from "../../format.js";
import { confirmed, toast } from "../../overlays.js";
import { skeleton as block, empty, problem, showProblem } from "../../placeholders.js";
import { to } from "../../router.js";

const SIDE_BY_SIDE = 3;
const FEW = 7;
const PAGE = 100;

export class Samples {
  id = "samples";
  title = "Samples";
  place = h("div", {}, block(140));

  /** @param {Found} found @param {AbortSignal} signal */
  constructor(found, signal) {
    this.found = found;
    this.signal = signal;
    /** @type {Sample[]} */
    this.samples = [];
    /** @type {number[]} steps that the reader chose; null: follow */
    this.chosen = [];
    /** @type {Map<number, number | string | null>} */
    this.validations = new Map();
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Samples" },
      h(
        "div",
        { class: "section-head" },
        h("h2", {}, "Samples"),
        h("span", { class: "faint" }, "written while it trained"),
      ),
      this.place,
    );
    this.load();
  }

  async load() {
    try {
      const path = `/runs/${encodeURIComponent(this.found.name)}/samples`;
      let page;
      do {
        const after = this.samples.at(-1)?.step;
        page = await get(path, { query: { limit: PAGE, after }, signal: this.signal });
        this.samples.push(...page.data);
      } while (page.has_more);
      await this.loadLosses();
      this.draw();
    } catch (error) {
      showProblem(this.place, error, () => this.load());
    }
  }

  async loadLosses() {
    const { job } = this.found;
    if (!job || !this.samples.length) return;
    const metrics = await get(`/jobs/${job.id}/metrics`, {
      query: { name: "val_loss", max_points: 1000 },
      signal: this.signal,
    });
    const { steps = [], values = [] } = metrics.series.val_loss ?? {};
    this.validations = new Map(steps.map((/** @type {number} */ step, /** @type {number} */ i) => [step, values[i]]));
  }

  /** @param {Found} found */
  update(found) {
    this.found = found;
    if (found.job && !found.job.terminal) this.load();
  }

  draw() {
    const { samples } = this;
    if (!samples.length) {
      replace(this.place, empty("No text was written yet."));
      return;
    }
    const last = samples.length - 1;
    const start = [0, Math.floor(last / 2), last].map((i) => samples[i].step).slice(0, SIDE_BY_SIDE);
    const steps = start.map((step, place) => this.chosen[place] ?? step);
    replace(
      this.place,
      h(
        "div",
        { class: "samples" },
        steps.map((step, place) => this.column(step, place)),
      ),
    );
  }

  /** @param {number} step @param {number} place */
  column(step, place) {
    const sample = this.samples.find((one) => one.step === step) ?? this.samples[0];
    const pick = h(
      "select",
      {
        class: "field",
        "aria-label": `Step of text ${place + 1}`,
        value: String(sample.step),
        onchange: () => {
          this.chosen[place] = Number(pick.value);
          this.draw();
          this.place.querySelectorAll("select")[place]?.focus();
        },
      },
      this.samples.map((one) => h("option", { value: one.step }, whole(one.step))),
    );
    const value = this.validations.get(sample.step);
    const score =
      value != null &&
      h("span", { class: "faint" }, `val loss ${typeof value === "number" ? value.toFixed(3) : value}`);
    const texts = sample.texts.map((text) => h("blockquote", {}, text.trim() || "(nothing)"));
    return h(
      "figure",
      { class: "sample" },
      h("figcaption", {}, h("label", { class: "check" }, "step", pick), score),
      texts,
    );
  }
}

export class Checkpoints {
  id = "checkpoints";
  title = "Checkpoints";
  count = h("span", { class: "faint" });
  rows = h("tbody");
  trouble = h("div");
  below = h("p", { class: "more" });
  isWhole = false;

  /** @param {Found} found @param {AbortSignal} signal @param {() => Promise<void>} onChanged */
  constructor(found, signal, onChanged) {
    this.found = found;
    this.signal = signal;
    this.onChanged = onChanged;
    const column = (/** @type {string} */ name, /** @type {string} */ kind) =>
      h("th", { class: kind, scope: "col" }, name);
    const head = h(
      "tr",
      {},
      column("File", ""),
      column("Step", "num"),
      column("Val loss", "num"),
      column("Holds", "wide"),
      column("Size", "num wide"),
      h("th", {}, h("span", { class: "sr" }, "Actions")),
    );
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Checkpoints" },
      h("div", { class: "section-head" }, h("h2", {}, "Checkpoints"), this.count),
      this.trouble,
      h("div", { class: "scroll" }, h("table", { class: "table" }, h("thead", {}, head), this.rows)),
      this.below,
    );
    this.draw();
  }

  /** @param {Found} found */
  update(found) {
    const shown = JSON.stringify(this.found.run?.checkpoints);
    this.found = found;
    if (shown !== JSON.stringify(found.run?.checkpoints)) this.draw();
  }

  draw() {
    const all = this.found.run?.checkpoints ?? [];
    const isNamed = (/** @type {Checkpoint} */ { file }) => !/_\d+\.pt$/.test(file);
    const sorted = [...all.filter(isNamed), ...all.filter((one) => !isNamed(one)).sort((a, b) => b.step - a.step)];
    const total = all.reduce((sum, { size_bytes: size }) => sum + size, 0);
    replace(this.count, all.length ? `${plural(all.length, "file")}, ${bytes(total)}` : "none yet");
    replace(
      this.rows,
      (this.isWhole ? sorted : sorted.slice(0, FEW)).map((one) => this.row(one)),
    );
    const showAll = () => {
      this.isWhole = true;
      this.draw();
    };
    const isMore = all.length > FEW && !this.isWhole;
    replace(
      this.below,
      isMore && h("button", { type: "button", class: "link-btn", onclick: showAll }, `Show all ${all.length}`),
    );
  }

  /** @param {Checkpoint} checkpoint */
  row(checkpoint) {
    const { file, step, val_loss: value, full, size_bytes: size, pinned } = checkpoint;
    const { name } = this.found;
    const address = `/runs/${encodeURIComponent(name)}/checkpoints/${encodeURIComponent(file)}`;
    const button = (/** @type {string} */ text, /** @type {() => Promise<void>} */ onclick) =>
      h("button", { type: "button", class: "link-btn", "aria-label": `${text} ${file}`, onclick }, text);
    const pin = () =>
      this.change(
        pinned ? "DELETE" : "PUT",
        `${address}/pin`,
        `${file} is ${pinned ? "no longer pinned" : "pinned: neither pruned nor deleted"}.`,
      );
    const remove = async () => {
      if (
        await confirmed(
          `Delete ${file} and free ${bytes(size)}?`,
          h("p", {}, `The other checkpoints of ${name} stay.`),
          "Delete",
        )
      )
        await this.change("DELETE", address, `${file} is deleted.`);
    };
    return h(
      "tr",
      {},
      h("td", { class: "mono" }, file, pinned && h("span", { class: "faint" }, " pinned")),
      h("td", { class: "num" }, whole(step)),
      h("td", { class: "num" }, loss(value)),
      h("td", { class: "muted wide" }, full ? "full state" : "weights"),
      h("td", { class: "num wide" }, bytes(size)),
      h(
        "td",
        { class: "num" },
        h(
          "span",
          { class: "row-actions" },
          h("a", { href: to(["attention", name, 0], { checkpoint: file }) }, "Attention"),
          h("a", { href: to(`${address}/content`), download: file }, "Download"),
          button(pinned ? "Unpin" : "Pin", pin),
          !pinned && button("Delete", remove),
        ),
      ),
    );
  }

  /** @param {"PUT" | "DELETE"} method @param {string} address @param {string} done */
  async change(method, address, done) {
    try {
      await send(method, address);
      replace(this.trouble);
      toast(done);
      await this.onChanged();
    } catch (error) {
      if (!isAbort(error)) replace(this.trouble, problem(error, null));
    }
  }
}
