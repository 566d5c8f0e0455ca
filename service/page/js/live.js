/**
 * Changes of all jobs, by one event stream a browser.
 *
 * A browser opens six connections to a host, so a stream for each tab would stop the sixth. The tab that holds a lock reads
 * `GET /events` and broadcasts what it reads; when it closes, or was hidden for 30 s, another tab gets the lock.
 *
 * @typedef {"connecting" | "live" | "offline"} LiveState
 * @typedef {{kind: "event", type: string, data: any, id: string}
 *   | {kind: "state", state: LiveState, seen: number} | {kind: "hello"}} Message
 */
import { now } from "./api.js";
import { prefix, to } from "./router.js";

const TYPES = ["status", "progress", "queue"];
const HIDDEN_MS = 30_000;
const RETRY_MS = 3_000;

/** @type {Map<string, Set<(data: any) => void>>} */
const listeners = new Map();
/** @type {Set<(state: LiveState, seen: number) => void>} */
const watchers = new Set();
/** @type {Set<() => void>} */
const resumers = new Set();

const channel = new BroadcastChannel(`headcount${prefix}`);
/** @type {EventSource | null} */
let source = null;
/** @type {AbortController | null} */
let turn = null; // of this tab: to hold the lock, or to wait for it
let retry = 0;
let hiding = 0;
let lastId = "";
/** @type {LiveState} */
let state = "connecting";
let seen = 0; // when the service was last heard, in its time
let wasLive = false;

/**
 * Listen to events of a type, for as long as a view is open.
 * @param {string} type `status`, `progress` or `queue`
 * @param {(data: any) => void} callback
 * @returns {() => void} ends it
 */
export function onEvent(type, callback) {
  const known = listeners.get(type) ?? new Set();
  listeners.set(type, known.add(callback));
  return () => void known.delete(callback);
}

/**
 * Listen to whether events arrive; called at once with the present state.
 * @param {(state: LiveState, seen: number) => void} callback seen: milliseconds of the service's clock
 * @returns {() => void} ends it
 */
export function onLiveState(callback) {
  watchers.add(callback);
  callback(state, seen);
  return () => void watchers.delete(callback);
}

/**
 * Listen to events arriving again after a pause, in which changes may have been missed: read the data anew.
 * @param {() => void} callback
 * @returns {() => void} ends it
 */
export function onResume(callback) {
  resumers.add(callback);
  return () => void resumers.delete(callback);
}

/** Begin. A hidden tab listens on for 30 s. */
export function startLive() {
  channel.onmessage = ({ data }) => receive(data);
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(stop, HIDDEN_MS);
    else start();
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", start);
  start();
}

function start() {
  if (turn) return;
  const mine = new AbortController();
  turn = mine;
  if (!navigator.locks) return open(); // not a secure context: a stream of its own
  channel.postMessage({ kind: "hello" });
  const held = () =>
    new Promise((release) => {
      mine.signal.addEventListener("abort", release);
      open();
    });
  navigator.locks.request(`headcount${prefix}`, { signal: mine.signal }, held).catch(() => {}); // it was aborted
}

function stop() {
  turn?.abort();
  turn = null;
  source?.close();
  source = null;
  clearTimeout(retry);
  if (state === "live") change("connecting", seen);
}

function open() {
  source = new EventSource(to("/events", { after: lastId }));
  source.onopen = () => tell({ kind: "state", state: "live", seen: now() });
  source.onerror = () => {
    tell({ kind: "state", state: "offline", seen });
    if (source?.readyState === EventSource.CLOSED) retry = setTimeout(open, RETRY_MS); // refused; otherwise it tries itself
  };
  for (const type of TYPES)
    source.addEventListener(type, (event) => {
      tell({ kind: "event", type, data: JSON.parse(event.data), id: event.lastEventId });
    });
}

/** @param {Message} message */
function tell(message) {
  channel.postMessage(message);
  receive(message);
}

/** @param {Message} message */
function receive(message) {
  if (message.kind === "hello") {
    if (source) channel.postMessage({ kind: "state", state, seen });
  } else if (message.kind === "state") change(message.state, message.seen);
  else if (turn) {
    seen = now();
    lastId = message.id || lastId;
    for (const callback of listeners.get(message.type) ?? []) callback(message.data);
  }
}

/**
 * @param {LiveState} next
 * @param {number} time
 */
function change(next, time) {
  const isBack = next === "live" && state !== "live" && wasLive;
  wasLive ||= next === "live";
  state = next;
  seen = Math.max(seen, time);
  for (const callback of watchers) callback(state, seen);
  if (isBack) for (const callback of resumers) callback();
}
