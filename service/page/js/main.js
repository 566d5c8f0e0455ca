/**
 * The shell: the bar, the view that the address asks for, and the keys that work everywhere.
 *
 * @typedef {import("./router.js").Route} Route
 * @typedef {object} View what a view returns
 * @property {string} title of the document
 * @property {Node} node
 * @property {import("./keys.js").Key[]} [keys] that work while it is open
 * @property {() => void} [ready] called once the node is in the document
 * @property {() => void} [leave] undoes what the view began: listeners, timers
 * @typedef {object} ViewModule
 * @property {(route: Route, signal: AbortSignal) => View | Promise<View>} render the signal is aborted when the view is left
 * @property {() => Node} [skeleton] stands there while `render` waits
 */
import { isAbort } from "./api.js";
import { h, replace, svg } from "./dom.js";
import { clock } from "./format.js";
import { bindAlways, bindKeys, showKeys, takeNextKey } from "./keys.js";
import { onEvent, onLiveState, startLive } from "./live.js";
import { announce } from "./overlays.js";
import { toggleTheme } from "./palette.js";
import { empty, problem, skeleton } from "./placeholders.js";
import { go, restoreScroll, startRouter, to } from "./router.js";

/** @type {{name: string, key: string, path: (run: string) => string, load: () => Promise<ViewModule>}[]} */
const VIEWS = [
  { name: "Jobs", key: "j", path: () => to("/"), load: () => import("./views/jobs.js") },
  {
    name: "Attention",
    key: "a",
    path: (run) => to(run ? ["attention", run, 0] : "/attention"),
    load: () => import("./views/attention.js"),
  },
];
/** @type {{name: string, load: () => Promise<ViewModule>}} */
const RUN = { name: "Run", load: () => import("./views/run.js") };
/** @type {Record<string, string>} */
const BY_FIRST_PART = {
  "": "Jobs",
  jobs: "Jobs",
  attention: "Attention",
};
const LOGO = "M3 3h0m6 0h0m6 0h0m6 0h0M3 9h0m6 0h0m6 0h0M3 15h0m6 0h0M3 21h0";
const HALF = "M8 2.5a5.5 5.5 0 0 1 0 11z";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const links = VIEWS.map(({ name }) => h("a", { class: "nav-link" }, name));
let lastRun = ""; // that was opened: the other views begin with it
let lastPath = "";
/** @type {View | null} */
let open = null;
let turn = new AbortController();

/** @param {Route} route */
function viewOf({ parts: [first = "", second, third] }) {
  if (first === "runs" ? second && !third : first === "jobs" && second) return RUN;
  return VIEWS.find(({ name }) => name === BY_FIRST_PART[first]) ?? null;
}

/** @param {Route} route @param {boolean} isBack */
async function draw(route, isBack) {
  const view = viewOf(route);
  turn.abort();
  turn = new AbortController();
  const { signal } = turn;
  leaveView();
  if (["runs", "attention"].includes(route.parts[0]) && route.parts[1]) lastRun = route.parts[1];
  drawLinks(view?.name);
  try {
    /** @type {ViewModule} */
    const module = view ? await view.load() : { render: nowhere };
    const waiting = setTimeout(() => replace(main, module.skeleton?.() ?? pageSkeleton()), 150);
    const made = await Promise.resolve(module.render(route, signal)).finally(() => clearTimeout(waiting));
    if (signal.aborted) return made.leave?.();
    show(made, view?.name ?? "nowhere");
  } catch (error) {
    if (signal.aborted || isAbort(error)) return;
    const retry = () => (error instanceof TypeError ? location.reload() : draw(route, isBack)); // a module of an older version
    replace(main, h("div", { class: "page" }, problem(error, retry)));
    document.title = "Headcount";
  }
  if (lastPath && lastPath !== route.path) main.focus({ preventScroll: true }); // who listens hears the new view
  if (isBack) restoreScroll();
  else if (lastPath !== route.path && !route.query.at) scrollTo(0, 0);
  lastPath = route.path;
}

function leaveView() {
  document.querySelector("dialog")?.close();
  open?.leave?.();
  open = null;
  bindKeys([]);
}

/** @param {View} view @param {string} name */
function show(view, name) {
  main.className = `view-${name.toLowerCase()}`;
  replace(main, view.node);
  document.title = `${view.title} · Headcount`;
  bindKeys(view.keys ?? []);
  open = view;
  view.ready?.();
}

/** @returns {View} */
function nowhere() {
  const node = h(
    "div",
    { class: "page" },
    h("h1", { class: "sr" }, "Nothing is here"),
    empty("Nothing is here. ", h("a", { href: to("/") }, "Go to the jobs")),
  );
  return { title: "Nothing is here", node };
}

const pageSkeleton = () => h("div", { class: "page stack" }, skeleton(30, 240), skeleton(220), skeleton(220));

/** @param {string} [name] of the view that opens */
function drawLinks(name) {
  for (const [i, view] of VIEWS.entries()) {
    links[i].href = view.path(lastRun);
    if (view.name === name) links[i].setAttribute("aria-current", "page");
    else links[i].removeAttribute("aria-current");
  }
}

function drawBar() {
  const logo = svg(
    "svg",
    { class: "logo", viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": true },
    svg("path", { d: LOGO }),
  );
  const half = svg(
    "svg",
    { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": true },
    svg("circle", { cx: 8, cy: 8, r: 5.5, class: "line" }),
    svg("path", { d: HALF }),
  );
  const live = h("span", { class: "live-state" });
  const bar = /** @type {HTMLElement} */ (document.getElementById("bar"));
  replace(
    bar,
    h("a", { class: "brand", href: to("/"), "aria-label": "Headcount, home" }, logo, h("span", {}, "Headcount")),
    h("nav", { "aria-label": "Views" }, links),
    live,
    h("a", { class: "icon-btn wide", href: to("/docs"), title: "The API, with examples to try" }, "API"),
    h(
      "button",
      { class: "icon-btn", "aria-label": "Light or dark", title: "Light or dark (t)", onclick: toggleTheme },
      half,
    ),
    h("button", { class: "icon-btn wide", "aria-label": "Keys", title: "Keys (?)", onclick: showKeys }, "?"),
  );
  onLiveState((state, seen) => {
    live.className = `live-state ${state}`;
    const since = seen ? `Offline, last seen ${clock(seen)}` : "Offline";
    replace(live, h("i"), { live: "Live", connecting: "", offline: since }[state]);
  });
}

bindAlways([
  { key: "g", what: "then j, a, p, c, d: go to a view", run: () => takeNextKey((key) => openByKey(key)) },
  { key: "t", what: "light or dark", run: toggleTheme },
  { key: "?", what: "this list", run: showKeys },
]);

/** @param {string} key */
function openByKey(key) {
  const view = VIEWS.find((candidate) => candidate.key === key);
  if (view) go(view.path(lastRun));
}

drawBar();
startLive();
onEvent("status", ({ run, dataset, job, status, snapshot }) => {
  if (!snapshot) announce(`${run ?? dataset ?? job} is ${status}`);
});
startRouter(draw);
