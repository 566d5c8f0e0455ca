/** What a view shows in place of data: nothing yet, nothing at all, or why not. */
import { ApiError, isAbort } from "./api.js";
import { h, replace } from "./dom.js";

const SKELETON_MS = 150;

/**
 * One sentence and the one thing to do.
 * @param {...import("./dom.js").Child} content
 */
export const empty = (...content) => h("p", { class: "empty" }, ...content);

/**
 * What failed, in place of what it would have shown.
 * @param {unknown} error
 * @param {(() => void) | null} [retry] what "Try again" does
 */
export function problem(error, retry) {
  const known = error instanceof ApiError ? error : null;
  const detail = error instanceof Error ? error.message : String(error);
  return h(
    "div",
    { class: "problem", role: "alert" },
    h(
      "p",
      {},
      h("strong", {}, known?.problem.title ?? "This could not be shown"),
      " ",
      known?.code && h("code", {}, known.code),
    ),
    h("p", {}, detail),
    known?.hint && h("p", {}, known.hint),
    known?.requestId && h("p", { class: "faint" }, "request ", h("code", {}, known.requestId)),
    retry && h("button", { type: "button", class: "btn", onclick: retry }, "Try again"),
  );
}

/**
 * Show at a place what failed there, unless it was given up because the view was left.
 * @param {HTMLElement} place
 * @param {unknown} error
 * @param {() => void} retry what "Try again" does
 */
export function showProblem(place, error, retry) {
  if (!isAbort(error)) replace(place, problem(error, retry));
}

/**
 * Show what an API refused about one field: a red border and the detail below, the nearest values as buttons.
 * @param {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} field
 * @param {HTMLElement} place an element below the field, with an id and `role=alert`
 * @param {import("./api.js").FieldProblem | null} refused null: the value is right
 * @param {(value: unknown) => void} take what a click on a nearest value does
 */
export function showFieldProblem(field, place, refused, take) {
  field.setAttribute("aria-invalid", String(refused != null));
  field.setAttribute("aria-describedby", place.id);
  const nearest = (refused?.nearest ?? []).map((value) =>
    h("button", { type: "button", class: "link-btn", onclick: () => take(value) }, String(value)),
  );
  place.replaceChildren(...(refused ? [refused.detail, ...nearest.flatMap((button) => [" ", button])] : []));
}

/**
 * A grey block of the final size, seen after 150 ms of waiting.
 * @param {number | string} height in pixels, or a CSS length
 * @param {number | string} [width]
 */
export function skeleton(height, width = "100%") {
  const length = (/** @type {number | string} */ size) => (typeof size === "number" ? `${size}px` : size);
  return h("div", { class: "skeleton", vars: { "--h": length(height), "--w": length(width) }, "aria-hidden": true });
}

/**
 * Show a place for data, and the data once they are there.
 * @template T
 * @param {Promise<T>} promise
 * @param {HTMLElement} waiting skeletons
 * @param {(data: T) => import("./dom.js").Child} show
 * @param {() => Promise<T>} [again] what "Try again" asks for
 * @returns {HTMLElement} a place that holds one of the three
 */
export function whenLoaded(promise, waiting, show, again) {
  const place = h("div", { class: "place" });
  const timer = setTimeout(() => place.append(waiting), SKELETON_MS);
  const settle = (/** @type {Promise<T>} */ asked) => {
    asked
      .then((data) => place.replaceChildren(h("div", { class: "place" }, show(data))))
      .catch((error) => place.replaceChildren(problem(error, again ? () => settle(again()) : null)))
      .finally(() => clearTimeout(timer));
  };
  settle(promise);
  return place;
}
