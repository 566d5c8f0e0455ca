/**
 * Jobs: what runs, what waits, what is over, and a new run beside them.
 *
 * @typedef {import("../types.js").Job} Job
 * @typedef {import("../types.js").Worker} Worker
 * @typedef {{jobs: Job[], hasMore: boolean, lastId: string | null, workers: Worker[]}} Listing
 */
import { get } from "../api.js";
import { h, keepList, replace, set } from "../dom.js";
import { bytes, plural } from "../format.js";
import { onEvent, onResume } from "../live.js";
import { skeleton as block, empty, showProblem } from "../placeholders.js";
import { go, note, to } from "../router.js";
import { finishedRow, nameOf, RunningCard, waitingRow } from "./jobs/job_rows.js";

const PAGE = 100;
const RELOAD_MS = 300; // several changes come together
const AGES_MS = 30_000;

/**
 * @param {import("../router.js").Route} route
 * @param {AbortSignal} signal
 * @returns {Promise<import("../main.js").View>}
 */
export async function render({ query }, signal) {
  return new JobsView(await load(signal), query, signal).view();
}

export const skeleton = () =>
  h(
    "div",
    { class: "page jobs" },
    h("div", { class: "stack" }, block(30, 160), block(196), block(30, 160), block(236)),
    block(640),
  );

/** @param {AbortSignal} signal @returns {Promise<Listing>} */
async function load(signal) {
  const [page, workers] = await Promise.all([
    get("/jobs", { query: { limit: PAGE }, signal }),
    get("/workers", { signal }),
  ]);
  return { jobs: page.data, hasMore: page.has_more, lastId: page.last_id, workers: workers.data };
}

class JobsView {
  capacity = h("span", { class: "faint" });
  machines = h("span", { class: "end faint" });
  trouble = h("div", {});
  running = h("div", { class: "stack" });
  waiting = h("ol", { class: "waiting-list" });
  waitingCount = h("span", { class: "faint" });
  rows = h("tbody");
  below = h("div", { class: "below-table" });
  compare = h("a", { class: "btn hidden" });
  formPlace = h("div", { class: "new-run-place" }, block(640));
  filter = h("input", {
    class: "field filter",
    type: "search",
    placeholder: "Filter: name or pattern",
    "aria-label": "Filter by name or heads, a regular expression",
    oninput: () => {
      note({ filter: this.filter.value });
      this.drawRows();
    },
  });

  /** @param {Listing} listing @param {Record<string, string>} query @param {AbortSignal} signal */
  constructor(listing, query, signal) {
    this.listing = listing;
    this.signal = signal;
    /** @type {{kind?: string, status?: string}} */
    this.only = { kind: query.kind, status: query.status };
    this.query = query;
    /** @type {Map<string, RunningCard>} */
    this.cards = new Map();
    /** @type {Set<string>} */
    this.ticked = new Set();
    /** @type {import("./jobs/new_run_form.js").NewRunForm | null} */
    this.form = null;
    this.at = ""; // address of the row of j and k
    this.reloading = 0;
    this.filter.value = query.filter ?? "";
    this.node = this.layout();
  }

  layout() {
    const newRun = h("button", { class: "btn narrow", onclick: () => this.form?.focus() }, "New run");
    return h(
      "div",
      { class: "page jobs" },
      h("h1", { class: "sr" }, "Jobs"),
      h(
        "div",
        { class: "jobs-main" },
        this.trouble,
        section("Running", [this.capacity, newRun, this.machines], this.running),
        section("Queue", [this.waitingCount], this.waiting),
        section(
          "Finished and paused",
          [h("span", { class: "end" }, this.compare, this.filter)],
          h("div", { class: "scroll" }, table(this.rows)),
          this.below,
        ),
      ),
      this.formPlace,
    );
  }

  /** @returns {import("../main.js").View} */
  view() {
    const off = [
      onEvent("status", (event) => !event.snapshot && this.reloadSoon()),
      onEvent("progress", (event) => this.showProgress(event)),
      onEvent("queue", (event) => this.showQueue(event)),
      onResume(() => this.reload()),
    ];
    const ages = setInterval(() => this.drawRows(), AGES_MS);
    this.draw();
    this.openForm();
    return {
      title: "Jobs",
      node: this.node,
      keys: this.keys(),
      leave: () => {
        for (const end of off) end();
        clearInterval(ages);
        clearTimeout(this.reloading);
        for (const card of this.cards.values()) card.leave();
        this.form?.leave();
      },
    };
  }

  async openForm() {
    const { NewRunForm } = await import("./jobs/new_run_form.js");
    if (this.signal.aborted) return;
    this.form = new NewRunForm({
      preset: this.query.new,
      from: this.query.from,
      signal: this.signal,
      room: () => Math.max(0, ...this.listing.workers.map(memoryOf)),
      onAdded: () => this.reload(),
    });
    replace(this.formPlace, this.form.node);
    if (this.query.new || this.query.from) this.form.focus();
  }

  reloadSoon() {
    clearTimeout(this.reloading);
    this.reloading = setTimeout(() => this.reload(), RELOAD_MS);
  }

  async reload() {
    try {
      const newest = await load(this.signal);
      const end = newest.jobs.at(-1)?.created_at ?? "";
      const older = newest.hasMore ? this.listing.jobs.filter(({ created_at }) => created_at < end) : []; // asked for before
      this.listing = older.length
        ? {
            ...this.listing,
            ...newest,
            jobs: [...newest.jobs, ...older],
            hasMore: this.listing.hasMore,
            lastId: this.listing.lastId,
          }
        : newest;
      replace(this.trouble);
      this.draw();
    } catch (error) {
      showProblem(this.trouble, error, () => this.reload());
    }
  }

  async more() {
    const page = await get("/jobs", { query: { limit: PAGE, after: this.listing.lastId }, signal: this.signal });
    this.listing = {
      ...this.listing,
      jobs: [...this.listing.jobs, ...page.data],
      hasMore: page.has_more,
      lastId: page.last_id,
    };
    this.draw();
  }

  draw() {
    const { jobs, workers } = this.listing;
    this.node.classList.toggle("nothing-yet", !jobs.length);
    this.drawRunning(
      jobs.filter(({ status }) => status === "running" || status === "stopping"),
      workers,
    );
    this.drawWaiting();
    this.drawRows();
  }

  /** @param {Job[]} jobs @param {Worker[]} workers */
  drawRunning(jobs, workers) {
    const slots = workers.reduce((sum, worker) => sum + worker.slots, 0);
    replace(this.capacity, slots ? `${jobs.length} of ${plural(slots, "slot")}` : "no worker has announced itself");
    replace(this.machines, workers.map(machine).join(" · "));
    for (const [id, card] of this.cards)
      if (!jobs.some((job) => job.id === id)) {
        card.leave();
        card.node.remove();
        this.cards.delete(id);
      }
    for (const job of jobs) {
      const known = this.cards.get(job.id);
      if (known) known.update(job);
      else this.cards.set(job.id, new RunningCard(job, this.signal, () => this.reload()));
    }
    const idle = empty(
      this.listing.jobs.length
        ? "Nothing runs. Choose a preset and add it to the queue."
        : "No run yet. Add quickstart to the queue: a small model learns to tell stories in a few minutes.",
    );
    replace(this.running, jobs.length ? jobs.map(({ id }) => this.cards.get(id)?.node) : idle);
  }

  drawWaiting() {
    const { jobs } = this.listing;
    const place = (/** @type {Job} */ job) => job.queue?.position ?? Number.POSITIVE_INFINITY;
    const waiting = jobs
      .filter(({ status }) => status === "queued")
      .sort((a, b) => place(a) - place(b) || a.created_at.localeCompare(b.created_at));
    const latest = Math.max(1, ...waiting.map((job) => job.queue?.eta_s?.[1] ?? 0));
    replace(this.waitingCount, waiting.length ? `${waiting.length} waiting` : "empty");
    const withFacts = waiting.map((job, i) => ({
      job,
      latest,
      needs: job.waiting_for.map((id) => jobs.find((other) => other.id === id)).filter((other) => other != null),
      above: waiting[i - 1] ?? null,
    }));
    keepList(this.waiting, withFacts, {
      key: ({ job }) => job.id,
      version: ({ job, needs, above }) =>
        JSON.stringify([job.queue, latest, job.priority, job.status, job.colour, needs.map(nameOf), above?.priority]),
      make: (facts) => waitingRow(facts, () => this.reload()),
    });
  }

  drawRows() {
    const over = this.listing.jobs.filter(({ terminal, status }) => terminal || status === "paused");
    const shown = over.filter((job) => this.matches(job));
    keepList(this.rows, shown, {
      key: ({ id }) => id,
      version: (job) =>
        JSON.stringify([job.status, job.progress, job.colour, job.error?.code, job.finished_at, age(job)]),
      make: (job) =>
        finishedRow(job, {
          isTicked: this.ticked.has(job.run ?? ""),
          onTick: (is) => this.tick(job, is),
          onChanged: () => this.reload(),
        }),
    });
    const all = h("button", { type: "button", class: "link-btn", onclick: () => this.showAll() }, "Show all");
    const isFiltered = this.filter.value || this.only.kind || this.only.status;
    const more = h("button", { type: "button", class: "btn", onclick: () => this.more() }, "Show older");
    const nothing = over.length
      ? h("p", { class: "muted" }, "No run has that name. ", all)
      : h("p", { class: "muted" }, "Nothing has finished yet.");
    replace(
      this.below,
      !shown.length && nothing,
      shown.length > 0 && isFiltered && h("p", { class: "faint" }, `${shown.length} of ${over.length} shown. `, all),
      this.listing.hasMore && more,
    );
    this.light();
  }

  /** @param {Job} job */
  matches(job) {
    if (this.only.kind && job.kind !== this.only.kind) return false;
    if (this.only.status && job.status !== this.only.status) return false;
    try {
      const wanted = new RegExp(this.filter.value, "i");
      set(this.filter, { "aria-invalid": "false" });
      return wanted.test(nameOf(job)) || wanted.test(job.model?.heads.join(" ") ?? "");
    } catch {
      set(this.filter, { "aria-invalid": "true" });
      return true; // half a pattern, while one writes
    }
  }

  showAll() {
    this.filter.value = "";
    this.only = {};
    note({ filter: "", kind: "", status: "" });
    this.drawRows();
    this.filter.focus();
  }

  /** @param {Job} job @param {boolean} is */
  tick(job, is) {
    if (job.run && is) this.ticked.add(job.run);
    else if (job.run) this.ticked.delete(job.run);
    this.compare.classList.toggle("hidden", this.ticked.size < 2);
    set(this.compare, { href: to("/compare", { runs: [...this.ticked].join(","), format: "png" }) });
    replace(this.compare, `Picture of ${this.ticked.size} runs`);
  }

  /** @param {Record<string, any>} event */
  showProgress({ job: id, ...progress }) {
    const job = this.listing.jobs.find((one) => one.id === id);
    if (!job) return this.reloadSoon();
    Object.assign(job.progress, progress);
    this.cards.get(id)?.update(job);
  }

  /** @param {{data: (import("../types.js").QueuePlace & {job: string})[]}} event */
  showQueue({ data }) {
    const places = new Map(data.map((place) => [place.job, place]));
    for (const job of this.listing.jobs) if (job.status === "queued") job.queue = places.get(job.id) ?? null;
    if (data.some(({ job }) => !this.listing.jobs.some(({ id }) => id === job))) this.reloadSoon();
    this.drawWaiting();
  }

  /** Rows that j and k go through, from top to bottom. */
  stops() {
    return /** @type {HTMLElement[]} */ ([...this.node.querySelectorAll("[data-address]")]);
  }

  light() {
    for (const row of this.stops()) row.classList.toggle("here", row.dataset.address === this.at);
  }

  /** @param {number} by */
  move(by) {
    const stops = this.stops();
    const now = stops.findIndex(({ dataset }) => dataset.address === this.at);
    const next = stops[Math.max(0, Math.min(stops.length - 1, now + by))];
    this.at = next?.dataset.address ?? "";
    this.light();
    next?.scrollIntoView({ block: "nearest" });
  }

  /** @returns {import("../keys.js").Key[]} */
  keys() {
    const isControl = (/** @type {KeyboardEvent} */ event) =>
      event.target instanceof Element && event.target.matches("a, button, [role=spinbutton]");
    const here = () => this.stops().find(({ dataset }) => dataset.address === this.at);
    return [
      { key: "/", what: "filter", run: () => this.filter.focus() },
      { key: ["j", "k"], what: "next, previous job", run: (event) => this.move(event.key === "j" ? 1 : -1) },
      { key: "Enter", what: "open it", unless: (event) => !this.at || isControl(event), run: () => go(this.at) },
      { key: "x", what: "tick it for comparing", run: () => here()?.querySelector("input")?.click() },
      { key: "n", what: "new run", run: () => this.form?.focus() },
      {
        key: "Escape",
        what: "leave the field",
        run: () => document.activeElement instanceof HTMLElement && document.activeElement.blur(),
      },
    ];
  }
}

/** What a row says that time alone changes. @param {Job} job */
const age = (job) => Math.floor((Date.now() - Date.parse(job.history.at(-1)?.time ?? job.created_at)) / 60_000);

/** Memory for one job: of the largest GPU, or of the machine. @param {Worker} worker */
const memoryOf = ({ gpus, memory_bytes: own }) =>
  gpus.length ? Math.max(...gpus.map((gpu) => gpu.memory_bytes)) : (own ?? 0);

/** @param {Worker} worker */
function machine({ host, gpus, memory_bytes }) {
  const device = gpus.length ? gpus.map(({ name }) => name).join(", ") : "CPU";
  return `${host}: ${device}${memory_bytes ? `, ${bytes(memory_bytes)}` : ""}`;
}

/** @param {string} title @param {import("../dom.js").Child} head @param {...import("../dom.js").Child} body */
function section(title, head, ...body) {
  return h("section", { "aria-label": title }, h("div", { class: "section-head" }, h("h2", {}, title), head), body);
}

/** @param {HTMLElement} rows */
function table(rows) {
  const column = (/** @type {string} */ name, /** @type {string} */ kind = "num wide") =>
    h("th", { class: kind, scope: "col" }, name);
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, h("span", { class: "sr" }, "Choose")),
    column("Run", ""),
    column("State", ""),
    column("Val loss", "num"),
    ["Step", "Tokens/s", "Took", "Ended"].map((name) => column(name)),
  );
  return h("table", { class: "table job-table" }, h("thead", {}, head), rows);
}
