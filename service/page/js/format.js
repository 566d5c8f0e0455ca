/** Numbers as people read them: one rule for each kind, used everywhere. Null is a dash. */

const NONE = "–";
const INTEGER = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** @typedef {number | null | undefined} Value */

/** 1,234. @param {Value} n */
export const whole = (n) => (n == null ? NONE : INTEGER.format(n));

/** A loss in a table, 0.9101; "nan" and "inf" stay words. @param {Value | string} x */
export const loss = (x) => (typeof x === "number" ? x.toFixed(4) : (x ?? NONE));

/** A number in passing: three digits or so. @param {Value | string} x */
export function short(x) {
  if (typeof x !== "number") return x ?? NONE;
  const size = Math.abs(x);
  if (size >= 10_000) return count(x);
  if (size >= 100) return INTEGER.format(x);
  return size >= 10 ? x.toFixed(1) : size >= 0.01 || x === 0 ? x.toFixed(2) : x.toPrecision(2);
}

/** A mark of an axis: 7, 0.005, 20 k. @param {number} x */
export const mark = (x) => (Math.abs(x) >= 10_000 ? count(x) : String(+x.toPrecision(3)));

/** A weight of attention: .42. @param {number} p */
export const weight = (p) => (p >= 0.995 ? "1.00" : p.toFixed(2).replace(/^0/, ""));

/** 12 MiB. @param {Value} n */
export function bytes(n) {
  if (n == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, n)) / 10)));
  const size = n / 1024 ** power;
  return `${power && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[power]}`;
}

/** 7.32 M. @param {Value} n */
export function count(n) {
  if (n == null) return NONE;
  const power = Math.min(5, Math.floor(Math.log10(Math.max(1, Math.abs(n))) / 3));
  return power ? `${(n / 1000 ** power).toPrecision(3)} ${" kMGTP"[power]}` : whole(n);
}

/** 45 s, 12 min, 1 h 20 min. @param {Value} seconds */
export function duration(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.round(hours / 24)} days`;
  return `${hours} h ${minutes % 60} min`;
}

/** An estimate is a range: 5 to 9 min. @param {[number, number] | number[]} seconds */
export function range([low, high]) {
  const per = high < 90 ? 1 : high < 5400 ? 60 : 3600;
  const unit = per === 1 ? "s" : per === 60 ? "min" : "h";
  const [a, b] = [low / per, high / per].map((n) => (per === 3600 ? +n.toFixed(1) : Math.round(n)));
  if (a === b) return b ? `about ${b} ${unit}` : "a moment";
  return a ? `${a} to ${b} ${unit}` : `under ${b} ${unit}`;
}

/** Time of the day, 02:29; with the date when it is another day. @param {number | string} time */
export function clock(time, now = Date.now()) {
  const date = new Date(time);
  const hour = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const isToday = date.toDateString() === new Date(now).toDateString();
  return isToday ? hour : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${hour}`;
}

/** 4 min ago. @param {number | string} time @param {number} now of the service */
export function ago(time, now) {
  const seconds = (now - new Date(time).getTime()) / 1000;
  return seconds < 60 ? "just now" : `${duration(seconds)} ago`;
}

/** "1 slot", "3 slots". @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

/** A token as one reads it: the space before it is layout, a line break is a sign. @param {string} text */
export const token = (text) => text.replace(/^ /, "").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "␣";
