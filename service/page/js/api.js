/**
 * Requests to the service. The page is one of its clients and has no other source.
 *
 * @typedef {{pointer: string, detail: string, value: unknown, nearest: unknown[], code: string}} FieldProblem
 * @typedef {{query?: Record<string, unknown>, signal?: AbortSignal}} Options
 * @typedef {Options & {json?: unknown, yaml?: string, form?: FormData, headers?: Record<string, string>}} WriteOptions
 */
import { to } from "./router.js";

/** What the service or the network refused. Its fields are those of a problem document (RFC 9457). */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0 if no reply came
   * @param {Record<string, any>} problem
   */
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.status = status;
    /** @type {string} */
    this.code = problem.code ?? "unknown";
    /** @type {FieldProblem[]} */
    this.errors = problem.errors ?? [];
    /** @type {string | undefined} */
    this.hint = problem.hint;
    /** @type {string | undefined} */
    this.requestId = problem.request_id;
    this.problem = problem;
  }
}

let clockOffset = 0;

/** Time of the service in milliseconds; the reader's clock may be wrong. */
export const now = () => Date.now() + clockOffset;

/**
 * Get JSON.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export async function get(path, { query, signal } = {}) {
  return (await request(path, { query, signal })).json();
}

/**
 * Get bytes.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<ArrayBuffer>}
 */
export async function getBytes(path, options = {}) {
  return (await request(path, { ...options, accept: "application/octet-stream" })).arrayBuffer();
}

/**
 * Get text.
 * @param {string} path
 * @param {Options & {headers?: Record<string, string>}} [options] headers: `Range`, for a part
 * @returns {Promise<string>}
 */
export async function getText(path, options = {}) {
  return (await request(path, { ...options, accept: "text/plain" })).text();
}

/**
 * Change something.
 * @param {"POST" | "PUT" | "PATCH" | "DELETE"} method
 * @param {string} path
 * @param {WriteOptions} [options]
 * @returns {Promise<any>} the JSON of the reply; null if it has none
 */
export async function send(method, path, options = {}) {
  const reply = await request(path, { ...options, method });
  return reply.status === 204 ? null : reply.json();
}

/**
 * Read server-sent events of one request until they end. Use this for what one asks for (a generated text, a log that
 * is followed while it is seen); changes of jobs come by `live.js`, because a browser opens six connections to a host.
 * @param {string} path
 * @param {WriteOptions & {method?: string}} [options]
 * @returns {AsyncGenerator<{type: string, id: string, data: any}>} data: JSON, or the text if it is none
 */
export async function* readEvents(path, options = {}) {
  const reply = await request(path, { ...options, accept: "text/event-stream" });
  const reader = /** @type {ReadableStream<Uint8Array>} */ (reply.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const frames = rest.split("\n\n");
      rest = frames.pop() ?? "";
      for (const frame of frames) {
        const event = parsedEvent(frame);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Whether an error only says that a view was left.
 * @param {unknown} error
 */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/**
 * @param {string} path
 * @param {WriteOptions & {method?: string, accept?: string}} options
 * @returns {Promise<Response>}
 */
async function request(
  path,
  { query, signal, method = "GET", accept = "application/json", json, yaml, form, headers },
) {
  const sent = new Headers({ Accept: `${accept}, application/problem+json;q=0.5`, ...headers });
  if (json !== undefined) sent.set("Content-Type", "application/json");
  if (yaml !== undefined) sent.set("Content-Type", "application/yaml");
  const body = json !== undefined ? JSON.stringify(json) : (yaml ?? form);
  let reply;
  try {
    reply = await fetch(to(path, query), { method, headers: sent, body, signal, cache: "no-cache" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError(0, { code: "offline", detail: "The service does not answer." });
  }
  setClock(reply.headers.get("Date"));
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

/** @param {Response} reply */
async function refusal(reply) {
  try {
    return new ApiError(reply.status, await reply.json());
  } catch {
    return new ApiError(reply.status, { detail: `The service answered ${reply.status} ${reply.statusText}.` });
  }
}

/** @param {string | null} date the header, in whole seconds */
function setClock(date) {
  const offset = Date.parse(date ?? "") + 500 - Date.now();
  if (Math.abs(offset - clockOffset) > 1500) clockOffset = offset;
}

/** @param {string} frame */
function parsedEvent(frame) {
  const fields = { event: "message", id: "", data: /** @type {string[]} */ ([]) };
  for (const line of frame.split("\n")) {
    const [, name, value] = /^(event|id|data): ?(.*)$/.exec(line) ?? [];
    if (name === "data") fields.data.push(value);
    else if (name === "event" || name === "id") fields[name] = value;
  }
  if (!fields.data.length) return null;
  const text = fields.data.join("\n");
  try {
    return { type: fields.event, id: fields.id, data: JSON.parse(text) };
  } catch {
    return { type: fields.event, id: fields.id, data: text };
  }
}
