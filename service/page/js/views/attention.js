/**
 * Where every head looks: all heads as a ragged grid, one of them large, and the text between them.
 *
 * @typedef {import("./attention/attention_replies.js").Captured} Captured
 * @typedef {import("./attention/head_grid.js").Place} Place
 * @typedef {import("./attention/step_slider.js").Stop} Stop
 * @typedef {import("../parts/matrix.js").Mark} Mark
 */
import { ApiError, get, isAbort } from "../api.js";
import { choices } from "../controls.js";
import { h, replace, set } from "../dom.js";
import { plural, whole } from "../format.js";
import { headMap } from "../glyph.js";
import { onEvent, onResume } from "../live.js";
import { onTheme } from "../palette.js";
import { tokenStrip } from "../parts/token_strip.js";
import { skeleton as block, empty, problem } from "../placeholders.js";
import { go, note, to } from "../router.js";
import { AttentionReplies } from "./attention/attention_replies.js";
import { headGrid, METRICS } from "./attention/head_grid.js";
import { matrixView } from "./attention/matrix_view.js";
import { stepSlider, stopsOf } from "./attention/step_slider.js";
import { textChooser } from "./attention/text_chooser.js";

const SETTLED_MS = 250;
const RELOAD_MS = 10_000; // of the checkpoints of a run that trains
const PHONE = 720;

/**
 * @param {import("../router.js").Route} route
 * @param {AbortSignal} signal
 * @returns {Promise<import("../main.js").View>}
 */
export async function render({ parts, query }, signal) {
  const run = parts[1] ?? (await newestRun(signal));
  if (!run) return nothing("No run has a checkpoint yet. ", h("a", { href: to("/") }, "Start one"));
  const [record, texts] = await Promise.all([
    get(`/runs/${encodeURIComponent(run)}`, { signal }),
    get(`/attention/${encodeURIComponent(run)}`, { query: { limit: 100 }, signal }),
  ]);
  const id = parts[2] ?? texts.data[0]?.id ?? "0";
  if (parts.length < 3) history.replaceState(null, "", to(["attention", run, id], query));
  if (!record.checkpoints.length)
    return nothing(`No checkpoint of ${run} yet. `, h("a", { href: to(["runs", run]) }, "Watch the run"));
  const view = new AttentionView(record, texts, id, query, signal);
  await view.load();
  return view.view();
}

export const skeleton = () =>
  h(
    "div",
    { class: "page attn" },
    h("div", { class: "stack" }, block(64), block(52), block(30, 300)),
    h("div", { class: "attn-body" }, block(520, 248), block(520), block(520)),
  );

/** @param {AbortSignal} signal @returns {Promise<string | undefined>} */
async function newestRun(signal) {
  const { data } = await get("/runs", { query: { limit: 100 }, signal });
  const ready = data.filter((/** @type {any} */ run) => run.checkpoint_count > 0);
  ready.sort((/** @type {any} */ a, /** @type {any} */ b) => (a.created_at < b.created_at ? 1 : -1));
  return ready[0]?.name;
}

/** @param {...import("../dom.js").Child} words @returns {import("../main.js").View} */
const nothing = (...words) => ({
  title: "Attention",
  node: h("div", { class: "page" }, h("h1", { class: "sr" }, "Attention"), empty(...words)),
});

class AttentionView {
  facts = h("p", { class: "muted" });
  stripPlace = h("div", { class: "attn-strip" });
  panel = h("aside", { class: "head-panel", "aria-label": "This head" });
  /** @type {Captured | null} */
  captured = null;
  /** @type {unknown} */
  failure = null;
  /** @type {Mark | null} */
  pointed = null;
  /** @type {ReturnType<typeof tokenStrip> | null} */
  strip = null;
  /** @type {any} */
  statistics = null;
  /** @type {typeof import("./attention/head_panel.js") | null} */
  parts = null;

  /**
   * @param {any} record of the run
   * @param {any} texts of the run that were looked at
   * @param {string} id of the text
   * @param {Record<string, string>} query
   * @param {AbortSignal} signal
   */
  constructor(record, texts, id, query, signal) {
    this.record = record;
    this.run = record.name;
    this.id = id;
    this.texts = texts;
    this.signal = signal;
    this.heads = /** @type {number[]} */ (record.model.heads);
    this.checkpoint = query.checkpoint ?? "best";
    this.maxTokens = query.max_tokens;
    this.place = this.#clamped(Number(query.layer) || 0, Number(query.head) || 0);
    this.pinned = query.token ? Number(query.token) : null;
    this.isRanked = query.arrange === "ranked";
    this.isAscending = query.order === "asc";
    this.metric = METRICS[query.metric] ? query.metric : "entropy_relative";
    this.isShared = query.scale !== "head";
    const address = `/attention/${encodeURIComponent(this.run)}/${encodeURIComponent(id)}`;
    this.replies = new AttentionReplies(address, this.maxTokens, signal);
    this.slider = stepSlider((stop) => this.#at(stop));
    this.grid = headGrid(this.heads, (place) => this.#choose(place.layer, place.head));
    this.matrix = matrixView({ point: (mark) => this.#point(mark), pin: (query) => this.#pin(query) });
    this.map = headMap(this.heads, {
      href: (layer, head) => to(["attention", this.run, id], { ...query, layer, head }),
      pitch: Math.min(9, 64 / Math.max(...this.heads)),
    });
    this.texting = textChooser({
      run: this.run,
      id,
      texts,
      checkpoint: () => this.checkpoint,
      open: (other, maxTokens) => go(to(["attention", this.run, other], { ...this.#kept(), max_tokens: maxTokens })),
      refused: (error, again) => this.#refuse(error, again),
    });
    this.scales = choices(
      "Scale",
      [
        { value: true, text: "0 to 1", title: "The same scale for every head (s)" },
        { value: false, text: "Per head", title: "Up to the head's largest weight, without the first token (s)" },
      ],
      this.isShared,
      (isShared) => this.#scale(isShared),
    );
  }

  /** Ask for what the address names, before it is shown. */
  async load() {
    try {
      this.captured = await this.replies.all(this.checkpoint);
    } catch (error) {
      if (isAbort(error)) throw error;
      this.failure = error;
    }
  }

  /** @returns {import("../main.js").View} */
  view() {
    const { run } = this;
    const off = [
      onTheme(() => this.#draw()),
      onEvent("progress", (event) => event.run === run && this.#reload()),
      onEvent("status", (event) => event.run === run && !event.snapshot && this.#reload(0)),
      onResume(() => this.#reload(0)),
    ];
    const fit = () => this.#fit();
    addEventListener("resize", fit);
    return {
      title: `Attention of ${run}`,
      node: this.#page(),
      keys: this.#keys(),
      ready: () => {
        this.#fit();
        this.#showStops();
        this.#draw();
        this.#settle();
        import("./attention/head_panel.js").then((parts) => {
          this.parts = parts;
          this.#drawPanel();
        });
      },
      leave: () => {
        for (const end of off) end();
        removeEventListener("resize", fit);
        clearTimeout(this.settling);
        clearTimeout(this.reloading);
        for (const part of [this.slider, this.grid, this.matrix]) part.leave();
      },
    };
  }

  #page() {
    const full = { type: "button", class: "btn quiet", title: "One head in full screen (f)" };
    this.body = h("div", { class: "attn-body" }, h("div", { class: "heads-box" }, this.grid.node), this.matrix.node);
    this.body.append(this.panel);
    this.node = h(
      "div",
      { class: `page attn run-${this.record.colour}` },
      h(
        "div",
        { class: "attn-top" },
        this.map.node,
        h("div", {}, h("h1", {}, h("a", { href: to(["runs", this.run]) }, this.run)), this.facts),
        this.texting.node,
        this.slider.node,
      ),
      this.stripPlace,
      h(
        "div",
        { class: "attn-bar" },
        this.#arrangement(),
        h(
          "div",
          { class: "end" },
          document.fullscreenEnabled && h("button", { ...full, onclick: this.matrix.toggleFullScreen }, "Full screen"),
          this.scales.node,
        ),
      ),
      this.body,
    );
    return this.node;
  }

  #arrangement() {
    const options = Object.entries(METRICS).map(([value, name]) => h("option", { value }, name));
    const ranked = () => (this.isRanked ? `Ranked ${this.isAscending ? "↑" : "↓"}` : "Ranked");
    /** @param {boolean} isRanked */
    const arrange = (isRanked) => {
      this.isAscending = isRanked && this.isRanked ? !this.isAscending : this.isAscending;
      this.isRanked = isRanked;
      note({ arrange: isRanked ? "ranked" : null, order: isRanked && this.isAscending ? "asc" : null });
      node.lastElementChild?.replaceChildren(ranked());
      this.#drawGrid();
    };
    const { node } = choices(
      "Arrange",
      [
        { value: false, text: "By layer" },
        { value: true, text: ranked(), title: "By the metric; a second click turns the order" },
      ],
      this.isRanked,
      arrange,
    );
    const metric = h("select", { class: "field", value: this.metric }, options);
    metric.value = this.metric;
    set(metric, {
      onchange: () => {
        this.metric = metric.value;
        note({ metric: this.metric });
        this.#drawGrid();
      },
    });
    return [node, h("label", { class: "check" }, "by", metric)];
  }

  // ---- what is chosen ------------------------------------------------------------------------------------------

  /** Choices that another text keeps. */
  #kept() {
    const { checkpoint, place, metric, isRanked, isShared } = this;
    return { checkpoint, ...place, metric, arrange: isRanked ? "ranked" : null, scale: isShared ? null : "head" };
  }

  /** @param {number} layer @param {number} head @returns {Place} */
  #clamped(layer, head) {
    const n = this.heads.length;
    const inside = (((Math.trunc(layer) || 0) % n) + n) % n;
    return { layer: inside, head: Math.max(0, Math.min(this.heads[inside] - 1, Math.trunc(head) || 0)) };
  }

  /** @param {number} layer @param {number} head */
  #choose(layer, head) {
    this.place = this.#clamped(layer, head);
    note({ ...this.place });
    this.failure = this.captured ? null : this.failure;
    this.#drawHead();
    this.#settle();
  }

  /** @param {boolean} isShared */
  #scale(isShared) {
    this.isShared = isShared;
    this.scales.press(isShared);
    note({ scale: isShared ? null : "head" });
    this.#drawGrid();
    this.#drawHead();
  }

  /** @param {number | null} query */
  #pin(query) {
    this.pinned = query === this.pinned ? null : query;
    note({ token: this.pinned });
    this.#drawMark();
  }

  /** @param {Mark | null} mark */
  #point(mark) {
    this.pointed = mark;
    this.#drawMark();
  }

  /** Show another checkpoint. @param {Stop} stop */
  async #at({ reference }) {
    this.checkpoint = reference;
    note({ checkpoint: reference });
    this.failure = null;
    this.captured = this.replies.allNow(reference) ?? this.captured;
    if (!this.replies.allNow(reference)) {
      this.matrix.wait();
      await this.load();
      if (this.checkpoint !== reference || this.signal.aborted) return; // the slider has moved on
      if (this.failure) this.captured = null;
    }
    this.statistics = null;
    this.#draw();
    this.#settle();
  }

  async #again() {
    this.failure = null;
    await this.load();
    this.#draw();
    this.#settle();
  }

  /** Show why a text was refused, in place of the matrix. @param {unknown} error @param {() => void} again */
  #refuse(error, again) {
    const most = error instanceof ApiError && /** @type {number | undefined} */ (error.errors[0]?.nearest[0]);
    const shorten = () => this.texting.send(Number(most));
    const cut = { type: "button", class: "btn", onclick: shorten };
    const retry = error instanceof ApiError && error.status && error.status < 500 ? null : again;
    const back = { type: "button", class: "btn quiet", onclick: () => this.#drawHead() };
    this.matrix.fail(
      h(
        "div",
        { class: "stack" },
        problem(error, retry),
        h(
          "p",
          {},
          typeof most === "number" && h("button", cut, `Look at the first ${whole(most)} tokens`),
          this.captured && h("button", back, "Back to the text before"),
        ),
      ),
    );
  }

  // ---- what follows from it ------------------------------------------------------------------------------------

  /** Once nothing moves any more: labels, and the neighbours of the step. */
  #settle() {
    clearTimeout(this.settling);
    this.settling = setTimeout(async () => {
      const { checkpoint, captured } = this;
      if (!captured) return;
      try {
        const statistics = await this.replies.statistics(checkpoint);
        if (this.checkpoint !== checkpoint) return;
        this.statistics = statistics;
        this.#drawPanel();
        for (const { reference } of this.slider.neighbours()) {
          await this.replies.all(reference);
          if (captured.weights.size < captured.weights.tokens.length)
            await this.replies.head(reference, this.place.layer, this.place.head);
        }
      } catch {} // nobody asked for them yet: who moves there sees the error
    }, SETTLED_MS);
  }

  /** Read the checkpoints again, while the run trains. @param {number} [wait] ms */
  #reload(wait = RELOAD_MS) {
    if (this.reloading && wait) return;
    clearTimeout(this.reloading);
    this.reloading = setTimeout(async () => {
      this.reloading = undefined;
      try {
        this.record = await get(`/runs/${encodeURIComponent(this.run)}`, { signal: this.signal });
        this.#showStops();
      } catch {} // the next event asks again
    }, wait);
  }

  #showStops() {
    const stops = stopsOf(this.record.checkpoints);
    const step = this.captured?.reply.step ?? stops.find(({ reference }) => reference === this.checkpoint)?.step;
    this.slider.update(stops, step ?? null);
  }

  /** The weights of the chosen head, in full. @returns {import("../parts/weights.js").Weights | undefined} */
  #whole() {
    const { weights } = /** @type {Captured} */ (this.captured);
    const isWhole = weights.size === weights.tokens.length;
    return isWhole ? weights : this.replies.headNow(this.checkpoint, this.place.layer, this.place.head);
  }

  /** Weight with the full colour. @param {Place} place */
  #most({ layer, head }) {
    return this.isShared || !this.captured ? 1 : this.captured.weights.most(layer, head);
  }

  // ---- drawing -------------------------------------------------------------------------------------------------

  #draw() {
    const tokens = this.captured?.weights.tokens;
    const from = this.captured?.reply.truncated_from;
    const all = this.heads.reduce((sum, n) => sum + n, 0);
    const limit = Math.min(from ?? 0, this.texts.limits.max_tokens);
    const more = () => go(to(["attention", this.run, this.id], { ...this.#kept(), max_tokens: limit }));
    replace(
      this.facts,
      `${plural(all, "head")} in ${plural(this.heads.length, "layer")}`,
      tokens && ` · ${from ? `first ${tokens.length} of ${whole(from)} tokens` : plural(tokens.length, "token")} `,
      tokens &&
        limit > tokens.length &&
        h("button", { type: "button", class: "link-btn", onclick: more }, limit === from ? "all" : `first ${limit}`),
    );
    if (tokens && this.strip?.buttons.length !== tokens.length) {
      this.strip = tokenStrip({
        label: "Text, token by token",
        tokens,
        onHover: (query) => this.#point(query == null ? null : { query, key: null }),
        onPick: (query) => this.#pin(query),
      });
      set(this.strip.node, { onfocusout: () => this.#point(null) });
      replace(this.stripPlace, this.strip.node);
      if (this.pinned != null && !(this.pinned < tokens.length)) this.pinned = null;
    }
    this.#drawGrid();
    this.#drawHead();
  }

  #drawGrid() {
    const { isRanked, metric, isAscending } = this;
    this.grid.update(this.captured, { mostOf: (place) => this.#most(place), isRanked, metric, isAscending });
    this.grid.choose(this.place);
  }

  #drawHead() {
    const { layer, head } = this.place;
    this.grid.choose(this.place);
    this.map.choose([layer, head]);
    this.drawn = null;
    if (this.failure || !this.captured) {
      replace(this.panel);
      this.matrix.fail(problem(this.failure, () => this.#again()));
      return this.#drawMark();
    }
    const weights = this.#whole();
    if (!weights) return this.#fetchHead();
    const isAlone = weights !== this.captured.weights;
    const place = isAlone ? 0 : head;
    this.drawn = { weights, layer, place, most: this.isShared ? 1 : weights.most(layer, place) };
    this.matrix.show(this.drawn, { name: `layer ${layer}, head ${head}`, isShared: this.isShared });
    this.#drawMark();
    this.#drawPanel();
  }

  /** Of a long text: the chosen head in full, then draw it. */
  async #fetchHead() {
    const [checkpoint, { layer, head }] = [this.checkpoint, this.place];
    this.matrix.wait();
    try {
      await this.replies.head(checkpoint, layer, head);
    } catch (error) {
      if (isAbort(error)) return;
      this.failure = error;
    }
    if (this.checkpoint === checkpoint && this.place.layer === layer && this.place.head === head) this.#drawHead();
  }

  #drawMark() {
    const { query, key } = this.pointed ?? { query: this.pinned, key: null };
    this.matrix.mark({ query, key });
    if (!this.drawn || query == null) return this.strip?.paint(null, [], [], this.pinned);
    const { weights, layer, place } = this.drawn;
    this.strip?.paint(query, weights.row(layer, place, query), weights.column(layer, place, query), this.pinned);
  }

  #drawPanel() {
    const { captured, drawn, place, statistics, run, id, checkpoint, maxTokens } = this;
    if (!captured || !drawn || !this.parts) return;
    const asked = { checkpoint, max_tokens: maxTokens };
    this.parts.fillPanel(
      this.panel,
      { captured, drawn, place, statistics, run, id, asked },
      {
        point: (query, key) => this.#point({ query, key }),
        unpoint: () => this.#point(null),
        pin: (query) => this.#pin(query),
      },
    );
  }

  /** As large thumbnails as the height allows. */
  #fit() {
    const rows = Math.max(...this.heads);
    const isWide = innerWidth > PHONE;
    const byHeight = isWide ? (Math.max(innerHeight, 700) - 296) / rows - 7 : (innerHeight * 0.45) / rows - 7;
    const byWidth = isWide ? 88 : Math.min(72, (innerWidth - 32) / this.heads.length - 8);
    const side = Math.floor(Math.max(isWide ? 36 : 28, Math.min(byHeight, byWidth)));
    this.node?.classList.toggle("small-heads", side < 46);
    if (this.node) set(this.node, { vars: { "--thumb": `${side}px` } });
    this.matrix.draw();
  }

  /** @returns {import("../keys.js").Key[]} */
  #keys() {
    const { slider } = this;
    const onSlider = (/** @type {KeyboardEvent} */ event) => event.target === slider.input;
    const onButton = (/** @type {KeyboardEvent} */ { target }) =>
      target instanceof Element && target.matches("button, a");
    const by = (/** @type {KeyboardEvent} */ { key }, /** @type {string} */ back) => (key === back ? -1 : 1);
    return [
      {
        key: ["ArrowUp", "ArrowDown"],
        what: "another head of the layer",
        unless: onSlider,
        run: (event) => this.#choose(this.place.layer, this.place.head + by(event, "ArrowUp")),
      },
      {
        key: ["ArrowLeft", "ArrowRight"],
        what: "another layer",
        unless: onSlider,
        run: (event) => this.#choose(this.place.layer + by(event, "ArrowLeft"), this.place.head),
      },
      { key: [",", "."], what: "an earlier, a later checkpoint", run: (event) => void slider.moveBy(by(event, ",")) },
      { key: " ", what: "run through the checkpoints", unless: onButton, run: () => void slider.toggle() },
      { key: "f", what: "one head in full screen", run: () => void this.matrix.toggleFullScreen() },
      { key: "s", what: "scale: 0 to 1, or per head", run: () => this.#scale(!this.isShared) },
      { key: "Escape", what: "let the pinned token go", run: () => this.#pin(null) },
    ];
  }
}
