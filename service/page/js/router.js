/**
 * The address says what is shown. What one opens is a link and an entry of the history; what one chooses goes into the
 * query without an entry. Every address is that of the resource, below the prefix of the service.
 *
 * @typedef {Record<string, string>} Query
 * @typedef {{path: string, parts: string[], query: Query}} Route path: below the prefix; parts: its names, decoded
 */

/** Path prefix of the service: this module is at PREFIX/static/VERSION/js/router.js. */
export const prefix = new URL("../../..", import.meta.url).pathname.replace(/\/$/, "");

/** @type {(route: Route, isBack: boolean) => void} */
let draw = () => {};

/** @returns {Route} */
export function here() {
  const path = decodeURI(location.pathname).slice(prefix.length) || "/";
  const parts = location.pathname.slice(prefix.length).split("/").filter(Boolean).map(decoded);
  return { path, parts, query: Object.fromEntries(new URLSearchParams(location.search)) };
}

/**
 * Address of a resource, for a link.
 * @param {string | (string | number)[]} path from the first slash on, or its names
 * @param {Record<string, unknown>} [query] null, undefined and "" are left out
 */
export function to(path, query = {}) {
  const whole = Array.isArray(path) ? path.map((name) => `/${encodeURIComponent(name)}`).join("") : path;
  return prefix + whole + queryString(query);
}

/**
 * Change choices in the address, without an entry in the history and without drawing the view again.
 * @param {Record<string, unknown>} changes null and "" remove a choice
 */
export function note(changes) {
  const query = queryString({ ...here().query, ...changes });
  history.replaceState(history.state, "", location.pathname + query + location.hash);
}

/**
 * Open an address, as a link does.
 * @param {string} address what `to` returns
 */
export function go(address) {
  keepScroll();
  history.pushState(null, "", address);
  draw(here(), false);
}

/**
 * Begin to follow links and the buttons of the browser.
 * @param {(route: Route, isBack: boolean) => void} callback draws the view of an address
 */
export function startRouter(callback) {
  draw = callback;
  history.scrollRestoration = "manual";
  addEventListener("popstate", () => draw(here(), true));
  document.addEventListener("click", follow);
  draw(here(), history.state != null);
}

/** Scroll to where the reader was at this entry of the history. */
export function restoreScroll() {
  scrollTo(0, history.state?.scroll ?? 0);
}

function keepScroll() {
  history.replaceState({ scroll: Math.round(scrollY) }, "");
}

addEventListener("pagehide", keepScroll);
let settling = 0;
addEventListener("scroll", () => {
  clearTimeout(settling);
  settling = setTimeout(keepScroll, 200);
});

/** @param {MouseEvent} event */
function follow(event) {
  const link = event.target instanceof Element ? event.target.closest("a") : null;
  const address = link?.getAttribute("href");
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey)
    return;
  if (!link || !address?.startsWith("/") || link.target || link.hasAttribute("download")) return;
  const path = new URL(address, location.href).pathname;
  if (!path.startsWith(prefix) || !isView(path.slice(prefix.length) || "/")) return;
  event.preventDefault();
  go(address);
}

/** @param {string} path below the prefix */
function isView(path) {
  return /^\/$|^\/jobs(\/[^/]+)?$|^\/runs\/[^/]+$|^\/attention(\/[^/]+){0,2}$/.test(path);
}

/** @param {Record<string, unknown>} query */
function queryString(query) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return text && `?${text.replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%2F", "/")}`;
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a lone percent sign
  }
}
