/** Colours for canvases, in the theme of this moment, and the theme itself. */

/** @type {Set<() => void>} */
const themed = new Set();
/** @type {Map<string, string>} */
let known = new Map();
/** @type {Uint8ClampedArray | null} */
let ramp = null;
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * Resolve a colour token, such as `--ink` or `--run-3`.
 * @param {string} name
 */
export function colour(name) {
  let value = known.get(name);
  if (value === undefined) {
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    value = getComputedStyle(probe).color;
    probe.remove();
    known.set(name, value);
  }
  return value;
}

/** Token of a run's colour; grey without one. @param {number | null | undefined} index */
export const runColour = (index) => (index == null ? "--ink-3" : `--run-${index % 8}`);

/**
 * Colours of a weight from none to the largest: 256 times red, green, blue. Level 255 * sqrt(p / most) has a colour.
 * @returns {Uint8ClampedArray}
 */
export function weightRamp() {
  if (ramp) return ramp;
  const stops = [0, 1, 2, 3, 4].map((i) => channels(colour(`--heat-${i}`)));
  ramp = new Uint8ClampedArray(256 * 3);
  for (let level = 0; level < 256; level++) {
    const at = (level / 255) * 4;
    const i = Math.min(3, Math.floor(at));
    for (let c = 0; c < 3; c++) ramp[level * 3 + c] = stops[i][c] + (stops[i + 1][c] - stops[i][c]) * (at - i);
  }
  return ramp;
}

/**
 * Draw again whenever the theme changes.
 * @param {() => void} draw
 * @returns {() => void} ends it
 */
export function onTheme(draw) {
  themed.add(draw);
  return () => void themed.delete(draw);
}

/** Change between light and dark, for this browser. */
export function toggleTheme() {
  const root = document.documentElement;
  const isDark = (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {} // storage is forbidden: the choice lasts until the page is closed
  themeChanged();
}

dark.addEventListener("change", themeChanged);

function themeChanged() {
  known = new Map();
  ramp = null;
  for (const draw of themed) draw();
}

/** @param {string} text rgb(…) */
function channels(text) {
  return (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);
}
