/**
 * Elements without markup from strings, so no text of a run can become markup.
 *
 * @typedef {Node | string | number | null | undefined | false | Child[]} Child
 * @typedef {Record<string, unknown>} Attributes names as in HTML; `onclick` and the like take a function, `vars` an object
 *   of CSS variables. Null and false leave an attribute out, true writes it without a value.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an HTML element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * Make an SVG element.
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Replace the children of an element.
 * @template {Element} E
 * @param {E} node
 * @param {...Child} children
 * @returns {E}
 */
export function replace(node, ...children) {
  node.replaceChildren(...present(children));
  return node;
}

/**
 * Set attributes of an element, as `h` does.
 * @param {HTMLElement | SVGElement} node
 * @param {Attributes} attributes
 */
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (name === "vars") setVariables(node, /** @type {Record<string, string>} */ (value));
    else if (name === "value" && "value" in node) node.value = value ?? "";
    else if (value == null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * Set CSS variables; the policy allows this and forbids a style attribute.
 * @param {HTMLElement | SVGElement} node
 * @param {Record<string, string | number>} variables
 */
export function setVariables(node, variables) {
  for (const [name, value] of Object.entries(variables)) node.style.setProperty(name, String(value));
}

/**
 * Show a list whose items change: an element is made again only when its item did, and moved only when the order did, so
 * the focus stays.
 * @template T
 * @param {HTMLElement} place
 * @param {T[]} items
 * @param {{key: (item: T) => string, version: (item: T) => string, make: (item: T) => HTMLElement}} how version: differs
 *   whenever the element would look different
 */
export function keepList(place, items, { key, version, make }) {
  const known = new Map([...place.children].map((node) => [/** @type {HTMLElement} */ (node).dataset.key, node]));
  const nodes = items.map((item) => {
    const old = /** @type {HTMLElement | undefined} */ (known.get(key(item)));
    if (old?.dataset.version === version(item)) return old;
    const node = make(item);
    Object.assign(node.dataset, { key: key(item), version: version(item) });
    old?.replaceWith(node);
    return node;
  });
  const wanted = new Set(/** @type {Element[]} */ (nodes));
  for (const node of [...place.children]) if (!wanted.has(node)) node.remove();
  for (const [i, node] of nodes.entries())
    if (place.children[i] !== node) place.insertBefore(node, place.children[i] ?? null);
}

/**
 * Save bytes as a file of the reader.
 * @param {string} name
 * @param {Blob} blob
 */
export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/**
 * Call a function at most once a frame, however often it is asked for.
 * @param {() => void} draw
 * @returns {() => void}
 */
export function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/**
 * @template {HTMLElement | SVGElement} E
 * @param {E} node
 * @param {Attributes | undefined} attributes
 * @param {Child[]} children
 */
function fill(node, attributes, children) {
  const { value, ...rest } = attributes ?? {};
  set(node, rest);
  node.append(...present(children));
  if (value !== undefined) set(node, { value }); // after its options, for a select
  return node;
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function present(children) {
  const flat = /** @type {(Exclude<Child, Child[]>)[]} */ (
    /** @type {any[]} */ (children).flat(Number.POSITIVE_INFINITY)
  );
  return flat.flatMap((child) =>
    child == null || child === false ? [] : [typeof child === "number" ? String(child) : child],
  );
}
