/**
 * Attention of one text under the checkpoints of a run, as the service sends it. The last replies are kept, so the way
 * back along the steps is without waiting.
 *
 * @typedef {Record<string, number | null>} HeadNumbers
 * @typedef {object} Captured
 * @property {any} reply of `/weights`, with the numbers of every head
 * @property {Weights} weights of all heads, pooled when the text is long
 */
import { get } from "../../api.js";
import { Weights } from "../../parts/weights.js";

const KEPT = 8;
const POOLED = 96; // tokens of a side: as large as a thumbnail can show

/** Replies by what was asked for; the ones used last stay. @template T */
class Kept {
  /** @type {Map<string, {promise: Promise<T>, value?: T}>} */
  #known = new Map();

  /** @param {string} key @param {() => Promise<T>} ask @returns {Promise<T>} */
  take(key, ask) {
    const entry = this.#known.get(key) ?? { promise: ask() };
    if (!this.#known.has(key))
      entry.promise.then(
        (value) => {
          entry.value = value;
        },
        () => this.#known.delete(key), // "Try again" asks again
      );
    this.#known.delete(key);
    this.#known.set(key, entry);
    for (const oldest of [...this.#known.keys()].slice(0, -KEPT)) this.#known.delete(oldest);
    return entry.promise;
  }

  /** What has come already. @param {string} key */
  now(key) {
    return this.#known.get(key)?.value;
  }
}

export class AttentionReplies {
  /** @type {Kept<Captured>} */
  #all = new Kept();
  /** @type {Kept<Weights>} */
  #heads = new Kept();
  /** @type {Kept<any>} */
  #statistics = new Kept();

  /**
   * @param {string} address of the text, from the first slash on
   * @param {string | undefined} maxTokens null asks for what the run's configuration says
   * @param {AbortSignal} signal
   */
  constructor(address, maxTokens, signal) {
    this.address = address;
    this.maxTokens = maxTokens;
    this.signal = signal;
  }

  /** All heads under a checkpoint. @param {string} checkpoint */
  all(checkpoint) {
    return this.#all.take(checkpoint, async () => {
      const reply = await this.#get("weights", { checkpoint, pool: POOLED });
      return { reply, weights: new Weights(reply) };
    });
  }

  /** All heads, if they are here. @param {string} checkpoint */
  allNow(checkpoint) {
    return this.#all.now(checkpoint);
  }

  /**
   * One head in full, as the only one of its `Weights`.
   * @param {string} checkpoint @param {number} layer @param {number} head
   */
  head(checkpoint, layer, head) {
    return this.#heads.take(`${checkpoint} ${layer} ${head}`, async () => {
      return new Weights(await this.#get("weights", { checkpoint, layer, head }));
    });
  }

  /** One head in full, if it is here. @param {string} checkpoint @param {number} layer @param {number} head */
  headNow(checkpoint, layer, head) {
    return this.#heads.now(`${checkpoint} ${layer} ${head}`);
  }

  /**
   * Ask ahead for other checkpoints; of a long text also for the head in full.
   * @param {{reference: string}[]} stops
   * @param {{layer: number, head: number}} place
   */
  async ahead(stops, { layer, head }) {
    for (const { reference } of stops) {
      const { weights } = await this.all(reference);
      if (weights.size < weights.tokens.length) await this.head(reference, layer, head);
    }
  }

  /** Labels of the heads and numbers of even attention. @param {string} checkpoint */
  statistics(checkpoint) {
    return this.#statistics.take(checkpoint, () => this.#get("statistics", { checkpoint }));
  }

  /** @param {string} what @param {Record<string, unknown>} query */
  #get(what, query) {
    return get(`${this.address}/${what}`, { query: { ...query, max_tokens: this.maxTokens }, signal: this.signal });
  }
}
