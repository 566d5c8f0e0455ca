/**
 * Tokens in reading order, as buttons. Point at one: blue is what it looks at, orange who looks at it. Attention is
 * causal, so blue is before it and orange behind it, and one line of text shows both.
 */
import { h, set, setVariables } from "../dom.js";
import { token, weight } from "../format.js";

const WRITTEN_FROM = 0.1; // weights from here on stand below their token,
const WRITTEN_PX = 21; // where it is wide enough
const SEEN_FROM = 0.01;
const STRONGEST = 50; // percent of opacity: ink on it keeps a contrast of 5

/**
 * @typedef {object} StripOptions
 * @property {string} label
 * @property {string[]} tokens
 * @property {(i: number | null) => void} onHover a token is pointed at or has the focus; null: none is
 * @property {(i: number | null) => void} onPick a token is chosen; null: Escape lets go
 */

/**
 * Make a strip. Tab stops at it once; arrows move inside.
 * @param {StripOptions} options
 * @returns {{node: HTMLElement, buttons: HTMLButtonElement[], paint: (now: number | null, looks: ArrayLike<number>,
 *   seen: ArrayLike<number>, pinned?: number | null) => void}} paint: colours it for one token, with the row and the
 *   column of that token; null leaves it plain
 */
export function tokenStrip({ label, tokens, onHover, onPick }) {
  const buttons = tokens.map((text, i) =>
    h(
      "button",
      {
        type: "button",
        class: "token",
        tabindex: i ? -1 : 0,
        "aria-label": `token ${i}: ${token(text)}`,
        onpointerenter: () => onHover(i),
        onfocus: () => onHover(i),
        onclick: () => onPick(i),
        onkeydown: (/** @type {KeyboardEvent} */ event) => moveByKey(event, i),
      },
      token(text),
    ),
  );
  /** @param {KeyboardEvent} event @param {number} i */
  function moveByKey(event, i) {
    const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "Escape") onPick(null);
    else if (next == null || !buttons[next]) return;
    else {
      buttons[i].tabIndex = -1;
      buttons[next].tabIndex = 0;
      buttons[next].focus();
    }
    event.preventDefault();
    event.stopPropagation();
  }
  // the space before a token stands between the buttons, so lines break where text breaks
  const line = buttons.map((button, i) => (tokens[i].startsWith(" ") ? [" ", button] : button));
  const node = h(
    "div",
    { class: "strip", role: "group", "aria-label": label, onpointerleave: () => onHover(null) },
    line,
  );

  /** @type {boolean[] | null} */
  let hasRoom = null;
  return {
    node,
    buttons,
    paint(now, looks, seen, pinned = null) {
      if (now != null) hasRoom ??= buttons.map(({ offsetWidth }) => offsetWidth >= WRITTEN_PX);
      for (const [i, button] of buttons.entries()) {
        const p = now == null || i === now ? 0 : i < now ? looks[i] : seen[i];
        const direction = p < SEEN_FROM ? "" : i < Number(now) ? " look" : " seen";
        button.className = `token${i === now ? " here" : direction}${i === pinned ? " pinned" : ""}`;
        setVariables(button, { "--p": `${Math.round(Math.sqrt(p) * STRONGEST)}%` });
        set(button, {
          "data-weight": p >= WRITTEN_FROM && hasRoom?.[i] ? weight(p) : null,
          "aria-pressed": String(i === pinned),
        });
      }
    },
  };
}
