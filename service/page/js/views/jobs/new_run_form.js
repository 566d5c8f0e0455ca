/**
 * A new run: a preset, heads as columns one can click, what it would cost, or the same as YAML. The service checks what
 * is written 200 ms after the last key; nothing is computed here.
 *
 * @typedef {import("../../types.js").Preset} Preset
 * @typedef {import("../../types.js").Validation} Validation
 */
import { ApiError, get, isAbort, send } from "../../api.js";
import { choices } from "../../controls.js";
import { h, replace, set } from "../../dom.js";
import { bytes, count, range, whole } from "../../format.js";
import { glyphBox } from "../../glyph.js";
import { toast } from "../../overlays.js";
import { problem, showFieldProblem, showProblem } from "../../placeholders.js";
import { to } from "../../router.js";
import { headEditor } from "./head_editor.js";
import { jobSection, RunDraft } from "./run_draft.js";

const PAUSE_MS = 200;
const KEPT = "unsent-run";
const FIRST_PRESET = "quickstart";
const MORE_KEYS = [
  { label: "Data source", path: "data.source" },
  { label: "Batch size", path: "training.batch_size" },
  { label: "Tokens a step", path: "training.total_batch_size" },
  { label: "Learning rate", path: "training.max_lr" },
  { label: "Seed", path: "device.seed" },
  { label: "Device", path: "device.device" },
];

export class NewRunForm {
  picker = h("div", { class: "presets", role: "group", "aria-label": "Preset" });
  heads = this.field("Heads per layer", "model.n_head_list", (text) => {
    this.draft.heads = text
      .split(/[\s,]+/)
      .filter(Boolean)
      .map(Number);
  });
  size = this.field(
    "Head size",
    "model.head_dim",
    (text) => this.draft.set("model.head_dim", parsed(text)),
    "width ÷ heads",
  );
  name = this.field("Name", "experiment_name", (text) => {
    this.draft.name = text.trim();
  });
  steps = this.field("Steps", "training.max_steps", (text) => this.draft.set("training.max_steps", parsed(text)));
  more = MORE_KEYS.map(({ label, path }) => this.field(label, path, (text) => this.draft.set(path, parsed(text))));
  priority = this.field("Priority", "job.priority", (text) => {
    this.draft.priority = Number(text) || 0;
  });
  fields = [this.heads, this.size, this.name, this.steps, ...this.more, this.priority];
  editor = headEditor((heads) => {
    this.draft.heads = heads;
    this.changed();
  });
  rest = h(
    "div",
    { class: "hidden" },
    h(
      "div",
      { class: "form-row even" },
      this.more.map(({ node }) => node),
      this.priority.node,
    ),
    h("p", { class: "faint" }, "Every other key: as YAML."),
  );
  form = h(
    "div",
    { class: "form-fields" },
    this.picker,
    h("div", { class: "form-row" }, this.heads.node, this.size.node),
    this.editor.node,
    h("div", { class: "form-row" }, this.name.node, this.steps.node),
    this.rest,
  );
  text = h("textarea", {
    class: "field mono",
    rows: 16,
    spellcheck: "false",
    "aria-label": "Configuration as YAML",
    oninput: () => this.changed(),
  });
  note = h("p", { class: "faint" });
  yaml = h("div", { class: "form-fields hidden" }, this.text, this.note);
  modes = choices(
    "Write as",
    [
      { value: "form", text: "Form" },
      { value: "all", text: "All keys" },
      { value: "yaml", text: "YAML" },
    ],
    "form",
    (mode) => this.show(mode),
  );
  wrong = h("div", { class: "wrong", role: "alert" });
  budget = h("dl", { class: "budget" });
  warnings = h("div", { class: "form-warnings faint" });
  button = h("button", { type: "submit", class: "btn primary" }, "Add to the queue");
  forecast = h("span", { class: "faint", role: "status" });
  node = h(
    "form",
    { class: "card new-run", "aria-label": "New run", onsubmit: (/** @type {Event} */ event) => this.submit(event) },
    h("div", { class: "section-head" }, h("h2", {}, "New run"), h("span", { class: "end" }, this.modes.node)),
    this.form,
    this.yaml,
    this.wrong,
    this.budget,
    this.warnings,
    h("div", { class: "form-end" }, this.button, this.forecast),
  );

  /** @param {{preset?: string, from?: string, signal: AbortSignal, room: () => number, onAdded: () => void}} options */
  constructor({ preset, from, signal, room, onAdded }) {
    this.room = room;
    this.signal = signal;
    this.onAdded = onAdded;
    this.draft = new RunDraft(FIRST_PRESET);
    this.isYaml = false;
    this.key = newKey();
    /** @type {Preset[]} */
    this.presets = [];
    this.checking = 0;
    this.turn = new AbortController();
    this.begin(preset, from);
  }

  /**
   * @param {string} label
   * @param {string} path of the key
   * @param {(text: string) => void} take
   * @param {string} [placeholder]
   */
  field(label, path, take, placeholder) {
    const id = `new-${path.replaceAll(/\W/g, "-")}`;
    const oninput = () => {
      take(input.value);
      this.changed();
    };
    const input = h("input", { class: "field", id, spellcheck: "false", autocomplete: "off", placeholder, oninput });
    const place = h("p", { class: "wrong", id: `${id}-wrong`, role: "alert" });
    return {
      node: h("div", {}, h("label", { class: "label", for: id }, label), input, place),
      input,
      place,
      path,
      take,
    };
  }

  /** @param {string} [preset] @param {string} [from] */
  async begin(preset, from) {
    try {
      /** @type {Preset[]} */
      const presets = (await get("/configs", { signal: this.signal })).data;
      this.presets = presets
        .filter(({ model }) => model) // the others make no run
        .sort((a, b) => Number(b.name === FIRST_PRESET) - Number(a.name === FIRST_PRESET)); // the rest as listed
      const kept = preset || from ? null : readKept();
      if (from) await this.copy(from);
      else await this.choose(preset ?? kept?.preset ?? FIRST_PRESET, kept);
    } catch (error) {
      showProblem(this.wrong, error, () => this.begin(preset, from));
    }
  }

  /** @param {string | null} name @param {Partial<RunDraft> | null} [kept] what was written before */
  async choose(name, kept) {
    const preset = this.presets.find((one) => one.name === name);
    this.draft = new RunDraft(
      name,
      preset?.model ? { model: { ...preset.model, n_head_list: preset.model.heads } } : {},
    );
    this.draft.name = preset?.free_name ?? name ?? "";
    this.draw();
    const reply = await this.ask({ json: this.draft.body() });
    this.draft.base = reply.config;
    if (kept) {
      const { patch = {}, name: written = this.draft.name, priority = 0 } = kept;
      Object.assign(this.draft, { patch, name: written, priority });
      this.check(0);
    } else this.showReply(reply);
    this.draw();
  }

  /** Fill the form with the configuration of a run. @param {string} run */
  async copy(run) {
    const [{ config }, { config: base }] = await Promise.all([
      get(`/runs/${encodeURIComponent(run)}`, { signal: this.signal }),
      this.ask({ json: { experiment_name: run } }),
    ]);
    this.draft = new RunDraft(null, base);
    this.draft.take({ ...config, experiment_name: run.replace(/-?(\d*)$/, (_, n) => `-${Number(n || 1) + 1}`) });
    this.draw();
    this.check(0);
  }

  /** @param {string} mode */
  show(mode) {
    const isYaml = mode === "yaml";
    this.isYaml = isYaml;
    this.rest.classList.toggle("hidden", mode !== "all");
    this.form.classList.toggle("hidden", isYaml);
    this.yaml.classList.toggle("hidden", !isYaml);
    if (isYaml) this.text.value = this.draft.yaml();
    this.draw();
    this.check(0);
  }

  changed() {
    this.key = newKey(); // another content is another job
    keep(this.draft);
    this.draw(document.activeElement);
    this.check(PAUSE_MS);
  }

  /** @param {Element | null} [written] the field in which one writes: it stays */
  draw(written) {
    const { draft } = this;
    const buttons = this.presets.map(({ name, title, model }) =>
      h(
        "button",
        {
          type: "button",
          class: "preset",
          title,
          "aria-pressed": String(name === draft.preset),
          onclick: () => this.pick(name),
        },
        glyphBox(model?.heads, { width: 38, height: 30, word: "" }),
        h("span", {}, name.replaceAll("_", " ")),
      ),
    );
    if (this.picker.children.length !== buttons.length) replace(this.picker, buttons);
    for (const [i, button] of [...this.picker.children].entries())
      set(/** @type {HTMLElement} */ (button), { "aria-pressed": String(this.presets[i].name === draft.preset) });
    const { heads } = draft;
    for (const { input, path } of this.fields) {
      if (input === written) continue;
      const special = {
        "model.n_head_list": heads.join(", "),
        experiment_name: draft.name,
        "training.max_steps": whole(draft.value("training.max_steps")),
        "job.priority": String(draft.priority),
      }[path];
      input.value = special ?? shown(draft.value(path));
    }
    if (heads.length)
      this.editor.draw({
        heads,
        width: draft.value("model.n_embd"),
        headDim: draft.value("model.head_dim") ?? null,
        misfits: draft.misfits,
      });
  }

  /** @param {string} name */
  async pick(name) {
    this.key = newKey();
    await this.choose(name).catch(
      (error) =>
        isAbort(error) ||
        replace(
          this.wrong,
          problem(error, () => this.pick(name)),
        ),
    );
    keep(this.draft);
  }

  /** @param {number} pause */
  check(pause) {
    clearTimeout(this.checking);
    this.checking = setTimeout(() => this.validate(), pause);
  }

  async validate() {
    try {
      const text = this.text.value;
      const reply = await this.ask(this.isYaml ? { yaml: text } : { json: this.draft.body() });
      if (this.isYaml) await this.takeYaml(text, reply);
      this.showReply(reply);
    } catch (error) {
      if (!isAbort(error)) this.showRefusal(error);
    }
  }

  /** @param {import("../../api.js").WriteOptions} body @returns {Promise<Validation>} */
  ask(body) {
    this.turn.abort();
    this.turn = new AbortController();
    const signal = AbortSignal.any([this.signal, this.turn.signal]);
    return send("POST", "/jobs", { ...body, query: { validate_only: true }, signal });
  }

  /** Follow the YAML with the form. @param {string} text @param {Validation} reply */
  async takeYaml(text, { config }) {
    const { preset, priority, others } = jobSection(text);
    if (preset !== this.draft.preset) {
      const base = await send("POST", "/jobs", {
        json: { ...(preset ? { job: { preset } } : {}), experiment_name: config.experiment_name },
        query: { validate_only: true },
        signal: this.signal,
      });
      this.draft = new RunDraft(preset, base.config);
    }
    this.draft.priority = priority;
    this.draft.take(config);
    replace(
      this.note,
      others.length > 0 && `The form does not show job.${others.join(", job.")}: add the run from here.`,
    );
    keep(this.draft);
    this.draw();
  }

  /** @param {Validation} reply */
  showReply({ config, budget, warnings, estimate, queue }) {
    this.clear();
    this.button.disabled = false;
    const taken = warnings.find(({ code }) => code === "run_exists");
    if (taken) this.refuseName(taken.detail, /'([^']+)'$/.exec(taken.detail)?.[1]);
    replace(
      this.warnings,
      warnings.filter((one) => one !== taken).map(({ detail }) => h("p", {}, detail)),
    );
    replace(
      this.budget,
      budget &&
        budgetLines(budget, { heads: this.draft.heads, block: config.model.block_size, room: this.room(), estimate }),
    );
    if (budget && this.steps.input !== document.activeElement) this.steps.input.value = whole(budget.schedule.steps);
    this.budget.classList.remove("stale");
    this.showForecast(queue, "Place");
  }

  /** @param {unknown} error */
  showRefusal(error) {
    this.clear();
    this.budget.classList.add("stale"); // the last reply stays
    if (!(error instanceof ApiError) || (!error.errors.length && error.code !== "run_exists")) {
      replace(
        this.wrong,
        problem(error, () => this.check(0)),
      );
      return;
    }
    this.button.disabled = error.status === 422;
    if (error.code === "run_exists") this.refuseName(error.message, error.problem.next_free);
    const unplaced = error.errors.filter((one) => this.isYaml || !this.showAtField(one));
    replace(
      this.wrong,
      unplaced.map(({ pointer, detail }) => h("p", {}, pointer && h("code", {}, pointer), " ", detail)),
    );
  }

  /** @param {import("../../api.js").FieldProblem} refused @returns {boolean} whether it has a field */
  showAtField(refused) {
    const path = refused.pointer.slice(1).replaceAll("/", ".");
    const found = this.fields.find((one) => path === one.path || path.startsWith(`${one.path}.`));
    if (!found) return false;
    showFieldProblem(found.input, found.place, refused, (value) => {
      if (found !== this.heads) found.take(String(value));
      else this.draft.heads = this.draft.heads.with([...this.draft.misfits][0] ?? 0, Number(value));
      found.input.blur();
      this.changed();
    });
    return true;
  }

  /** @param {string} detail @param {string} [free] */
  refuseName(detail, free) {
    const refused = {
      pointer: "/experiment_name",
      detail,
      value: this.draft.name,
      nearest: free ? [free] : [],
      code: "run_exists",
    };
    if (this.isYaml) replace(this.wrong, detail);
    else this.showAtField(refused);
  }

  clear() {
    replace(this.wrong);
    for (const { input, place } of this.fields) showFieldProblem(input, place, null, () => {});
  }

  /** @param {import("../../types.js").QueuePlace | null | undefined} queue @param {string} begin */
  showForecast(queue, begin) {
    replace(
      this.forecast,
      queue && `${begin} ${queue.position}${queue.eta_s ? `, starts in ${range(queue.eta_s)}` : ""}`,
    );
  }

  /** @param {Event} event */
  async submit(event) {
    event.preventDefault();
    this.button.disabled = true;
    clearTimeout(this.checking);
    try {
      const body = this.isYaml ? { yaml: this.text.value } : { json: this.draft.body() };
      const job = await send("POST", "/jobs", { ...body, headers: { "Idempotency-Key": this.key } });
      const place = job.queue ? `, at place ${job.queue.position}` : "";
      toast(h("a", { href: to(["jobs", job.id]) }, job.run ?? job.id), ` is in the queue${place}.`);
      this.clear();
      replace(this.forecast); // the next one has another place
      forget();
      this.onAdded();
    } catch (error) {
      this.showRefusal(error);
    }
    this.button.disabled = false; // a second click is the same job, by its key
  }

  focus() {
    this.node.scrollIntoView({ block: "nearest", behavior: "smooth" });
    const first = this.isYaml ? this.text : this.name.input;
    first.focus({ preventScroll: true });
  }

  leave() {
    clearTimeout(this.checking);
  }
}

/**
 * @param {import("../../types.js").Budget} budget
 * @param {{heads: number[], block: number, room: number, estimate: Validation["estimate"]}} about block: tokens of a context;
 *   room: memory of the largest worker, in bytes
 */
function budgetLines(budget, { heads, block, room, estimate }) {
  const {
    parameters,
    kv_bytes_per_token: kv,
    flops_per_token: flops,
    softmax_elements: maps,
    memory,
    disk,
    schedule,
  } = budget;
  const most = Math.max(...heads);
  const saved = 1 - heads.reduce((sum, n) => sum + n, 0) / (heads.length * most);
  const { steps, tokens, epochs } = schedule;
  /** @type {[string, string, (string | false | null)?][]} */
  const lines = [
    ["Parameters", whole(parameters)],
    ["KV cache", `${bytes(kv)} a token`, `${bytes(kv * block)} at ${whole(block)}`],
    ["FLOPs", `${count(flops)} a token`],
    [
      "Attention maps",
      `${count(maps)} weights`,
      saved > 0.005 && `−${Math.round(100 * saved)} % beside ${heads.length} × ${most}`,
    ],
    ["Memory", bytes(memory.required_bytes), room > 0 && `of ${bytes(room)}`],
    ["Steps", whole(steps), `${count(tokens)} tokens${epochs ? `, ${+epochs.toPrecision(3)} epochs` : ""}`],
    ["Disk", bytes(disk.total_bytes), `${disk.periodic} + best, final, latest`],
  ];
  if (estimate) lines.push(["Time", range(estimate.time_s), `at ${whole(estimate.tokens_per_s)} tokens/s here`]);
  return lines.flatMap(([term, value, more]) => [
    h("dt", {}, term),
    h("dd", {}, h("b", {}, value), more && h("span", { class: "faint" }, more)),
  ]);
}

/** @param {string} text @returns {number | string | null} null: as the preset has it */
function parsed(text) {
  const plain = text.trim().replaceAll(/(?<=\d),(?=\d{3})/g, "");
  return plain === "" ? null : Number.isNaN(Number(plain)) ? plain : Number(plain);
}

/** @param {unknown} value */
const shown = (value) =>
  typeof value === "number" && Number.isInteger(value) && value >= 10_000 ? whole(value) : String(value ?? "");

/** Random, also where the page is not a secure context. */
const newKey = () =>
  `page-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;

/** @param {RunDraft} draft */
function keep({ preset, patch, name, priority }) {
  try {
    localStorage.setItem(KEPT, JSON.stringify({ preset, patch, name, priority }));
  } catch {} // storage is forbidden or full: the draft lasts until the page is closed
}

function forget() {
  try {
    localStorage.removeItem(KEPT);
  } catch {}
}

/** @returns {Partial<RunDraft> | null} */
function readKept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "null");
  } catch {
    return null;
  }
}
