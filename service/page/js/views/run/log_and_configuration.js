/**
 * The log of a run, followed while it is seen, and its configuration: what differs from the defaults first.
 *
 * @typedef {import("../run.js").Found} Found
 */
import { getText, isAbort, readEvents, send } from "../../api.js";
import { download, h, replace } from "../../dom.js";
import { plural } from "../../format.js";
import { toast } from "../../overlays.js";
import { skeleton as block, showProblem } from "../../placeholders.js";
import { to } from "../../router.js";

const TAIL = 200;
const FIRST_BYTES = 2000; // the beginning stays
const LINES_KEPT = 5000;
const AT_END_PX = 24;

export class Log {
  id = "log";
  title = "Log";
  count = h("span", { class: "faint", role: "status" });
  body = h("pre", { class: "log mono", tabindex: 0, "aria-label": "Log" });
  place = h("div", {}, block(240));

  /** @param {Found} found @param {AbortSignal} signal */
  constructor(found, signal) {
    this.found = found;
    this.signal = signal;
    this.path = `/jobs/${found.job?.id}/logs`;
    /** @type {string[]} */
    this.beginning = [];
    /** @type {string[]} */
    this.lines = [];
    this.isWhole = false;
    /** @type {AbortController | null} */
    this.stream = null;
    this.isSeen = false;
    this.find = h("input", {
      id: "find-in-log",
      class: "field filter",
      type: "search",
      placeholder: "Find in the log",
      "aria-label": "Find in the log",
      oninput: () => this.search(),
    });
    this.follow = h("input", { type: "checkbox", checked: true, onchange: () => this.watch() });
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Log" },
      h(
        "div",
        { class: "section-head" },
        h("h2", {}, "Log"),
        this.count,
        h(
          "span",
          { class: "end" },
          h("label", { class: "check" }, this.follow, "follow"),
          this.find,
          h("a", { class: "btn quiet", href: to(this.path), target: "_blank" }, "Whole file"),
        ),
      ),
      this.place,
    );
    this.observer = new IntersectionObserver(([entry]) => {
      this.isSeen = entry.isIntersecting;
      this.watch();
    });
    this.observer.observe(this.node);
    this.load();
  }

  async load() {
    try {
      this.lines = linesOf(await getText(this.path, { query: { tail: TAIL }, signal: this.signal }));
      this.isWhole = this.lines.length < TAIL;
      if (!this.isWhole) await this.loadBeginning();
      replace(this.place, this.body);
      this.draw();
      this.body.scrollTop = this.body.scrollHeight;
    } catch (error) {
      showProblem(this.place, error, () => this.load());
    }
  }

  async loadBeginning() {
    const headers = { Range: `bytes=0-${FIRST_BYTES - 1}` };
    const first = linesOf(await getText(this.path, { headers, signal: this.signal })).slice(0, -1);
    const overlap = first.indexOf(this.lines[0]);
    this.isWhole = overlap >= 0;
    this.beginning = overlap >= 0 ? first.slice(0, overlap) : first;
  }

  /** Follow the log while it is seen: a stream holds one of six connections. */
  watch() {
    const { job } = this.found;
    const wanted = this.isSeen && this.follow.checked && job != null && !job.terminal && job.status !== "paused";
    if (!wanted) {
      this.stream?.abort();
      this.stream = null;
    } else if (!this.stream) this.read();
  }

  async read() {
    const stream = new AbortController();
    this.stream = stream;
    this.signal.addEventListener("abort", () => stream.abort());
    try {
      let isFirst = true;
      for await (const { type, data } of readEvents(this.path, { query: { tail: TAIL }, signal: stream.signal })) {
        if (type !== "log") continue;
        const lines = linesOf(data.text);
        const known = isFirst ? lines.lastIndexOf(this.lines.at(-1) ?? "") : -1;
        isFirst = false;
        this.lines.push(...lines.slice(known + 1));
        if (this.lines.length > LINES_KEPT) {
          this.lines.splice(0, this.lines.length - LINES_KEPT);
          this.isWhole = false;
        }
        this.draw();
      }
    } catch (error) {
      if (!isAbort(error)) replace(this.count, "not followed: the service does not answer");
    } finally {
      if (this.stream === stream) this.stream = null;
    }
  }

  /** Search the whole file, once one searches. */
  async search() {
    this.draw();
    if (this.isWhole || !this.find.value) return;
    this.isWhole = true;
    try {
      const all = linesOf(await getText(this.path, { signal: this.signal }));
      this.beginning = [];
      this.lines = all;
    } catch (error) {
      if (!isAbort(error)) this.isWhole = false;
    }
    this.draw();
  }

  draw() {
    const wanted = this.find.value.toLowerCase();
    const isAtEnd = this.body.scrollHeight - this.body.scrollTop - this.body.clientHeight < AT_END_PX;
    const all = [...this.beginning, ...this.lines];
    const shown = wanted ? all.filter((line) => line.toLowerCase().includes(wanted)) : all;
    const gap = h("div", { class: "faint log-gap" }, "… lines between are in the whole file …");
    const nodes = shown.map((line) => row(line, wanted));
    if (!wanted && this.beginning.length && !this.isWhole) nodes.splice(this.beginning.length, 0, gap);
    replace(this.body, nodes);
    replace(
      this.count,
      wanted
        ? `${plural(shown.length, "line")} found`
        : this.isWhole
          ? plural(all.length, "line")
          : "its beginning and last lines",
    );
    if (isAtEnd && this.follow.checked) this.body.scrollTop = this.body.scrollHeight;
  }

  /** @param {Found} found */
  update(found) {
    const wasOver = this.found.job?.terminal;
    this.found = found;
    this.watch();
    if (!wasOver && found.job?.terminal && !this.stream) this.load();
  }

  leave() {
    this.observer.disconnect();
    this.stream?.abort();
  }
}

/** @param {string} text */
const linesOf = (text) => text.split("\n").filter((line) => line !== "");

/** @param {string} line @param {string} wanted in small letters */
function row(line, wanted) {
  const [, time, level, rest] = /^\S+ (\d\d:\d\d:\d\d),\d+ (\w+) (.*)$/.exec(line) ?? ["", "", "", line];
  const at = wanted ? rest.toLowerCase().indexOf(wanted) : -1;
  const text =
    at < 0
      ? rest
      : [rest.slice(0, at), h("mark", {}, rest.slice(at, at + wanted.length)), rest.slice(at + wanted.length)];
  const kind = level === "WARNING" ? "log-warning" : level === "ERROR" || level === "CRITICAL" ? "wrong" : "";
  return h(
    "div",
    { class: kind },
    time && h("span", { class: "faint" }, `${time}  `),
    kind && level && `${level} `,
    text,
  );
}

export class Configuration {
  id = "configuration";
  title = "Configuration";

  /** @param {Found} found @param {AbortSignal} signal */
  constructor(found, signal) {
    this.found = found;
    /** @type {Record<string, any>} */
    this.config = found.run?.config ?? found.job?.config ?? {};
    this.signal = signal;
    const copy = h("button", { type: "button", class: "btn quiet", onclick: () => this.copy() }, "Copy as YAML");
    this.what = h("h3", { class: "muted" }, "All keys");
    this.place = h("div", {}, this.sections(this.config));
    this.node = h(
      "section",
      { id: this.id, class: "run-section", "aria-label": "Configuration" },
      h(
        "details",
        { open: innerWidth > 720 },
        h("summary", { class: "section-head" }, h("h2", {}, "Configuration")),
        h("div", { class: "section-head" }, this.what, h("span", { class: "end" }, copy)),
        this.place,
      ),
    );
    this.compare();
  }

  /** What the service would fill in for a configuration that says nothing. */
  async compare() {
    try {
      const json = { experiment_name: this.config.experiment_name };
      const { config } = await send("POST", "/configs/validate", { json, signal: this.signal });
      const differing = Object.fromEntries(
        sectionsOf(this.config)
          .map(([name, values]) => [name, unequal(values, config[name] ?? {})])
          .filter(([, values]) => Object.keys(values).length),
      );
      const all = h("details", { class: "config-all" }, h("summary", {}, "All keys"), this.sections(this.config));
      replace(this.what, "Differs from the defaults");
      replace(this.place, this.sections(differing), all);
    } catch (error) {
      if (!isAbort(error)) return; // all keys are shown already
    }
  }

  /** @param {Record<string, any>} config */
  sections(config) {
    const parts = sectionsOf(config).map(([name, values]) =>
      h(
        "div",
        { class: "config-part" },
        h("h3", {}, name),
        h(
          "dl",
          {},
          Object.entries(values).map(([key, value]) =>
            h("div", {}, h("dt", {}, key), h("dd", { class: value == null ? "faint" : "" }, shown(value))),
          ),
        ),
      ),
    );
    return h("div", { class: "config" }, parts);
  }

  async copy() {
    const text = yamlOf(this.config);
    try {
      await navigator.clipboard.writeText(text);
      toast("The configuration is in the clipboard.");
    } catch {
      download(`${this.found.name}.yaml`, new Blob([text], { type: "application/yaml" }));
    }
  }
}

/** @param {Record<string, any>} config @returns {[string, Record<string, any>][]} */
const sectionsOf = (config) => Object.entries(config).filter(([, values]) => values && typeof values === "object");

/** @param {Record<string, any>} values @param {Record<string, any>} defaults */
const unequal = (values, defaults) =>
  Object.fromEntries(
    Object.entries(values).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(defaults[key])),
  );

/** @param {unknown} value */
function shown(value) {
  if (value == null) return "none";
  return typeof value === "object"
    ? JSON.stringify(value)
        .replaceAll('"', "")
        .replaceAll(/([,:])/g, "$1 ")
    : String(value);
}

/** JSON is YAML, so values stay JSON. @param {Record<string, any>} config */
function yamlOf(config) {
  const isPart = (/** @type {unknown} */ value) => value && typeof value === "object" && !Array.isArray(value);
  const lines = Object.entries(config).flatMap(([name, value]) =>
    isPart(value)
      ? [`${name}:`, ...Object.entries(value).map(([key, one]) => `  ${key}: ${JSON.stringify(one)}`)]
      : [`${name}: ${JSON.stringify(value)}`],
  );
  return `${lines.join("\n")}\n`;
}
