/**
 * A run that is being described: a preset and a merge patch on it. The form and the YAML beside it show the same draft;
 * the service reads the YAML, so this has no parser.
 *
 * @typedef {Record<string, any>} Tree
 */

const NOT_A_KEY = ["schema_version", "experiment_name"];
const PLAIN = /^[A-Za-z_./][\w./@:-]*$/; // text that YAML reads as text without quotes
const WORDS = /^(true|false|null|yes|no|on|off|y|n|nan|inf)$/i;

export class RunDraft {
  /**
   * @param {string | null} preset name; null: on the defaults of every key
   * @param {Tree} [base] effective configuration of the preset, once it is known
   */
  constructor(preset, base = {}) {
    this.preset = preset;
    this.base = base;
    /** @type {Tree} */
    this.patch = {};
    this.name = "";
    this.priority = 0;
  }

  /** Effective value of a key. @param {string} path `training.max_steps` @returns {any} */
  value(path) {
    return at(this.patch, path) ?? at(this.base, path);
  }

  /** Change a key; its own value in the preset, or null, takes it out of the patch. @param {string} path @param {unknown} value */
  set(path, value) {
    const [section, key] = path.split(".");
    const rest = { ...this.patch[section] };
    if (value == null || same(value, at(this.base, path))) delete rest[key];
    else rest[key] = value;
    this.patch = { ...this.patch, [section]: rest };
    if (!Object.keys(rest).length) delete this.patch[section];
  }

  /** Heads of every layer; entries that are no number are kept, for the service to refuse. @returns {number[]} */
  get heads() {
    return this.value("model.n_head_list") ?? Array(this.value("model.n_layer") ?? 0).fill(this.value("model.n_head"));
  }

  set heads(heads) {
    const before = new RunDraft(null, this.base).heads;
    this.set("model.n_head_list", same(heads, before) ? null : heads);
    this.set("model.n_layer", same(heads, before) ? null : heads.length);
  }

  /** Layers whose head count does not divide the width. @returns {Set<number>} */
  get misfits() {
    const width = this.value("model.n_embd");
    const fits = (/** @type {number} */ n) =>
      Number.isInteger(n) && n > 0 && (this.value("model.head_dim") || width % n === 0);
    return new Set(this.heads.flatMap((n, layer) => (fits(n) ? [] : [layer])));
  }

  /** Take an effective configuration as the draft. @param {Tree} config */
  take(config) {
    this.patch = difference(this.base, config);
    this.name = config.experiment_name;
  }

  /** What is submitted. @returns {Tree} */
  body() {
    const job = {
      ...(this.preset ? { preset: this.preset } : {}),
      ...(this.priority ? { priority: this.priority } : {}),
    };
    return { ...(Object.keys(job).length ? { job } : {}), experiment_name: this.name, ...this.patch };
  }

  /** The same as YAML, with the heads in any case: they are what one changes. */
  yaml() {
    const { job, experiment_name, model, ...rest } = this.body();
    const shown = { ...(job && { job }), experiment_name, model: { n_head_list: this.heads, ...model }, ...rest };
    const lines = Object.entries(shown).map(([key, value]) => entry(key, value, ""));
    return `${lines.join("\n")}\n`;
  }
}

/**
 * What a text says about its job, which the effective configuration does not: `job: {preset: quickstart}`.
 * @param {string} text
 * @returns {{preset: string | null, priority: number, others: string[]}} others: keys that the form does not show
 */
export function jobSection(text) {
  const flow = /^job:[ \t]*\{([^}]*)\}/m.exec(text)?.[1].split(",");
  const block = /^job:[ \t]*(?:#.*)?\n((?:[ \t]+.*\n?|\n)*)/m.exec(text)?.[1].split("\n");
  const pairs = (flow ?? block ?? [])
    .map((line) => /^\s*"?(\w+)"?:\s*["']?([^"'#]*)/.exec(line))
    .filter((found) => found != null);
  const given = Object.fromEntries(pairs.map(([, key, value]) => [key, value.trim()]));
  const { preset = null, priority = 0, ...others } = given;
  return { preset, priority: Number(priority) || 0, others: Object.keys(others) };
}

/** @param {Tree} tree @param {string} path */
function at(tree, path) {
  return path.split(".").reduce((/** @type {any} */ part, key) => part?.[key], tree);
}

/** @param {unknown} a @param {unknown} b */
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** @param {Tree} base @param {Tree} config @returns {Tree} */
function difference(base, config) {
  const changed = Object.entries(config).flatMap(([key, value]) => {
    if (NOT_A_KEY.includes(key) || value == null || same(value, base[key])) return [];
    const isTree = typeof value === "object" && !Array.isArray(value) && base[key];
    return [[key, isTree ? difference(base[key], value) : value]];
  });
  return Object.fromEntries(
    changed.filter(([, value]) => typeof value !== "object" || Array.isArray(value) || Object.keys(value).length),
  );
}

/** @param {string} key @param {unknown} value @param {string} indent @returns {string} */
function entry(key, value, indent) {
  if (Array.isArray(value)) return `${indent}${key}: [${value.map(scalar).join(", ")}]`;
  if (typeof value !== "object" || value == null) return `${indent}${key}: ${scalar(value)}`;
  const lines = Object.entries(value).map(([name, inner]) => entry(name, inner, `${indent}  `));
  return [`${indent}${key}:`, ...lines].join("\n");
}

/** @param {unknown} value */
function scalar(value) {
  return typeof value === "string" && (!PLAIN.test(value) || WORDS.test(value)) ? JSON.stringify(value) : String(value);
}
