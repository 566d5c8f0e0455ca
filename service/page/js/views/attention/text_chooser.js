/** Which text is looked at: the examples and texts of a run, and any other text. */
import { ApiError, isAbort, send } from "../../api.js";
import { choices } from "../../controls.js";
import { h, set } from "../../dom.js";
import { plural, whole } from "../../format.js";
import { problem } from "../../placeholders.js";

const MOST_BUTTONS = 3;
const LABEL = 28; // characters

/**
 * Make the choice.
 * @param {object} options
 * @param {string} options.run
 * @param {string} options.id of the text that is shown
 * @param {{data: {id: string, kind: string, begins: string}[]}} options.texts
 * @param {() => string} options.checkpoint that another text is looked at with
 * @param {(id: string, maxTokens?: number) => void} options.open
 * @param {(content: HTMLElement) => void} options.refuse shows why a text was refused
 * @param {() => void} options.back shows the text before again
 */
export function textChooser({ run, id, texts, checkpoint, open, refuse, back }) {
  const known = texts.data.map(({ id: value, kind, begins }) => ({
    value,
    title: begins,
    text: kind === "example" ? `Example ${value}` : begins.slice(0, LABEL) || value,
  }));
  if (!known.some(({ value }) => value === id))
    known.push({ value: id, title: "", text: /^\d+$/.test(id) ? `Example ${id}` : "This text" });
  const field = h("input", {
    class: "field",
    placeholder: "Any text, then Enter",
    "aria-label": "Look at any text",
    autocomplete: "off",
  });
  /** @param {number} [maxTokens] cuts the text */
  const submit = async (maxTokens) => {
    if (!field.value.trim()) return;
    set(field, { "aria-busy": "true", disabled: true });
    try {
      const json = { run, checkpoint: checkpoint(), text: field.value, max_tokens: maxTokens };
      open((await send("POST", "/attention", { json })).id, maxTokens);
    } catch (error) {
      if (!isAbort(error)) refuse(refusal(error, { submit, back, maxTokens }));
    } finally {
      set(field, { "aria-busy": null, disabled: null });
    }
  };
  set(field, {
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.isComposing) submit();
    },
  });
  return { node: h("div", { class: "attn-text" }, chooserOf(known, id, open), field) };
}

/**
 * What is looked at, in words: heads, layers, tokens, and a button for more tokens of a text that was cut.
 * @param {number[]} heads
 * @param {{tokens: string[], truncated_from: number | null} | undefined} reply
 * @param {number} limit tokens that can be looked at
 * @param {(tokens: number) => void} onMore
 */
export function factsOf(heads, reply, limit, onMore) {
  const all = heads.reduce((sum, n) => sum + n, 0);
  const facts = `${plural(all, "head")} in ${plural(heads.length, "layer")}`;
  if (!reply) return facts;
  const [n, from] = [reply.tokens.length, reply.truncated_from];
  const most = Math.min(from ?? 0, limit);
  const words = most === from ? "all" : `first ${most}`;
  return [
    `${facts} · ${from ? `first ${n} of ${whole(from)} tokens` : plural(n, "token")} `,
    most > n && h("button", { type: "button", class: "link-btn", onclick: () => onMore(most) }, words),
  ];
}

/**
 * @param {unknown} error
 * @param {{submit: (maxTokens?: number) => void, back: () => void, maxTokens?: number}} what
 */
function refusal(error, { submit, back, maxTokens }) {
  const known = error instanceof ApiError ? error : null;
  const fitting = known?.errors[0]?.nearest[0];
  const isFinal = known?.status === 422; // the same text is refused again
  return h(
    "div",
    { class: "stack" },
    problem(error, isFinal ? null : () => submit(maxTokens)),
    h(
      "p",
      {},
      typeof fitting === "number" &&
        h(
          "button",
          { type: "button", class: "btn", onclick: () => submit(fitting) },
          `Look at the first ${whole(fitting)} tokens`,
        ),
      h("button", { type: "button", class: "btn quiet", onclick: back }, "Back to the text before"),
    ),
  );
}

/** @param {{value: string, text: string, title: string}[]} known @param {string} id @param {(id: string) => void} open */
function chooserOf(known, id, open) {
  if (known.length <= MOST_BUTTONS && known.every(({ text }) => text.length < 14))
    return choices("Text", known, id, open).node;
  const name = (/** @type {typeof known[number]} */ { text, title }) =>
    text.startsWith("Example") && title ? `${text}: ${title.slice(0, LABEL)}` : text;
  const options = known.map((one) => h("option", { value: one.value, title: one.title }, name(one)));
  const select = h("select", { class: "field text-select", "aria-label": "Text", value: id }, options);
  set(select, { onchange: () => open(select.value) });
  return select;
}
