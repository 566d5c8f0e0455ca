/** Axes of charts: from values to pixels, marks at round numbers, and smoothing. */

/**
 * @typedef {object} Scale
 * @property {(value: number) => number} place pixel of a value
 * @property {(pixel: number) => number} value value of a pixel
 * @property {number[]} ticks
 */

/**
 * Build a scale.
 * @param {[number, number]} domain smallest and largest value
 * @param {[number, number]} pixels where these are
 * @param {{isLog?: boolean, ticks: number}} options ticks: about how many
 * @returns {Scale}
 */
export function scale([low, high], [from, to], { isLog = false, ticks }) {
  const log = isLog && low > 0;
  const bend = log ? Math.log : (/** @type {number} */ v) => v;
  const unbend = log ? Math.exp : (/** @type {number} */ v) => v;
  const [a, b] = [bend(low), bend(high)];
  const perUnit = (to - from) / (b - a || 1);
  return {
    place: (value) => from + (bend(value) - a) * perUnit,
    value: (pixel) => unbend(a + (pixel - from) / perUnit),
    ticks: log ? logTicks(low, high, ticks) : linearTicks(low, high, ticks),
  };
}

/**
 * Smooth by a forgetting mean, forward and backward: in one direction it lags, and training would look worse than
 * validation.
 * @param {ArrayLike<number>} values those that are not finite stay
 * @param {number} amount 0 to .99: share of the past in each step
 * @returns {Float64Array}
 */
export function smoothed(values, amount) {
  const n = values.length;
  const both = new Float64Array(n);
  for (const isBack of [false, true]) {
    let mean = 0;
    let share = 0;
    for (let j = 0; j < n; j++) {
      const i = isBack ? n - 1 - j : j;
      const value = values[i];
      if (Number.isFinite(value)) {
        mean = amount * mean + (1 - amount) * value;
        share = amount * share + 1 - amount;
      }
      both[i] += Number.isFinite(value) ? mean / share / 2 : value;
    }
  }
  return both;
}

/**
 * Find the nearest of sorted numbers.
 * @param {ArrayLike<number>} sorted
 * @param {number} x
 * @returns {number} its index; -1 if there are none
 */
export function nearestIndex(sorted, x) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle;
    else high = middle;
  }
  return high < 0 || x - sorted[low] <= sorted[high] - x ? Math.min(low, high) : high;
}

/** @param {number} low @param {number} high @param {number} about */
function linearTicks(low, high, about) {
  const rough = (high - low) / about;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((n) => n * power >= rough * 0.999) ?? 10);
  const first = Math.ceil(low / step - 1e-6);
  const last = Math.floor(high / step + 1e-6);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** @param {number} low @param {number} high @param {number} about */
function logTicks(low, high, about) {
  const decades = Array.from(
    { length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 },
    (_, i) => 10 ** (Math.floor(Math.log10(low)) + i),
  );
  for (const steps of [[1, 1.5, 2, 3, 5, 7], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
    const ticks = decades.flatMap((decade) => steps.map((n) => n * decade)).filter((t) => t >= low && t <= high);
    if (ticks.length <= about + 2) return ticks.length > 1 ? ticks : linearTicks(low, high, about);
  }
  return decades.filter((t, i) => t >= low && t <= high && i % Math.ceil(decades.length / about) === 0);
}
