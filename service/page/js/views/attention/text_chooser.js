/** Which text is looked at: the examples and texts of a run, and any other text. */
import { isAbort, send } from "../../api.js";
import { choices } from "../../controls.js";
import { h, set } from "../../dom.js";

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
 * @param {(error: unknown, again: () => void) => void} options.refused
 */
export function textChooser({ run, id, texts, checkpoint, open, refused }) {
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
      if (!isAbort(error)) refused(error, () => submit(maxTokens));
    } finally {
      set(field, { "aria-busy": null, disabled: null });
    }
  };
  set(field, {
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && !event.isComposing) submit();
    },
  });
  return { node: h("div", { class: "attn-text" }, chooserOf(known, id, open), field), send: submit };
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
