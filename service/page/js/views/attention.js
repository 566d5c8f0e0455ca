/**
 * Where every head looks: all heads as a ragged grid, one of them large, and the text between them.
 *
 * @typedef {import("./attention/attention_replies.js").Captured} Captured
 * @typedef {import("./attention/head_grid.js").Place} Place
 * @typedef {import("./attention/step_slider.js").Stop} Stop
 * @typedef {import("../parts/matrix.js").Mark} Mark
 */
import { get, isAbort } from "../api.js";
import { choices } from "../controls.js";
import { h, replace, set } from "../dom.js";
import { headMap } from "../glyph.js";
import { onEvent, onResume } from "../live.js";
import { onTheme } from "../palette.js";
import { tokenStrip } from "../parts/token_strip.js";
import { skeleton as block, empty, problem } from "../placeholders.js";
import { go, note, to } from "../router.js";
import { attentionKeys } from "./attention/attention_keys.js";
import { AttentionReplies } from "./attention/attention_replies.js";
import { arrangement, arrangementOf, arrangementQuery, headGrid } from "./attention/head_grid.js";
import { matrixView } from "./attention/matrix_view.js";
import { stepSlider, stopsOf } from "./attention/step_slider.js";
import { factsOf, textChooser } from "./attention/text_chooser.js";

const SETTLED_MS = 250;
const RELOAD_MS = 10_000; // of the checkpoints of a run that trains

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
    this.arranged = arrangementOf(query);
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
    set(this.map.node, { onclick: (/** @type {MouseEvent} */ event) => this.#chooseInMap(event) });
    this.texting = textChooser({
      run: this.run,
      id,
      texts,
      checkpoint: () => this.checkpoint,
      open: (other, maxTokens) => go(to(["attention", this.run, other], { ...this.#kept(), max_tokens: maxTokens })),
      refuse: (content) => this.matrix.fail(content),
      back: () => this.captured && this.#drawHead(),
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
    addEventListener("resize", this.grid.fit);
    return {
      title: `Attention of ${run}`,
      node: this.#page(),
      keys: attentionKeys({
        slider: this.slider,
        move: (layers, heads) => this.#choose(this.place.layer + layers, this.place.head + heads),
        fullScreen: this.matrix.toggleFullScreen,
        scale: () => this.#scale(!this.isShared),
        letGo: () => this.#pin(null),
      }),
      ready: () => {
        this.grid.fit();
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
        removeEventListener("resize", this.grid.fit);
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
        arrangement(this.arranged, (changes) => {
          Object.assign(this.arranged, changes);
          note(arrangementQuery(this.arranged));
          this.#drawGrid();
        }),
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

  // ---- what is chosen ------------------------------------------------------------------------------------------

  /** Choices that another text keeps. */
  #kept() {
    const { checkpoint, place, isShared } = this;
    return { checkpoint, ...place, ...arrangementQuery(this.arranged), scale: isShared ? null : "head" };
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

  /** A dot is a link, for another window too; in this one nothing else changes. @param {MouseEvent} event */
  #chooseInMap(event) {
    const dot = event.target instanceof Element ? event.target.closest("[data-head]") : null;
    if (!dot || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const [layer, head] = String(dot.getAttribute("data-head")).split(".").map(Number);
    this.#choose(layer, head);
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
        await this.replies.ahead(this.slider.neighbours(), this.place);
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
    replace(
      this.facts,
      factsOf(this.heads, this.captured?.reply, this.texts.limits.max_tokens, (most) => {
        go(to(["attention", this.run, this.id], { ...this.#kept(), max_tokens: most }));
      }),
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
      if (!tokens[this.pinned ?? -1]) this.pinned = null;
    }
    this.#drawGrid();
    this.#drawHead();
  }

  #drawGrid() {
    this.grid.update(this.captured, { mostOf: (place) => this.#most(place), ...this.arranged });
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
}
