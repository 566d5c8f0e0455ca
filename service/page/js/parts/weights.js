/**
 * Attention weights of one text under one checkpoint, as `GET /attention/{run}/{id}/weights` sends them: the square root
 * of a weight in one byte, the lower triangle row by row, head after head. Layers differ in heads, so they are a list.
 *
 * @typedef {{layer: number, n_head: number, weights: string, heads?: number[]}} EncodedLayer
 */

/** Weights of all heads of a reply. */
export class Weights {
  /** @param {{tokens: string[], layers: EncodedLayer[], size?: number}} reply */
  constructor({ tokens, layers, size = tokens.length }) {
    this.tokens = tokens;
    /** Rows and columns of a triangle: blocks of tokens, where the reply was asked to pool them. */
    this.size = size;
    /** Bytes of one head. */
    this.triangle = (this.size * (this.size + 1)) / 2;
    /** @type {number[]} */
    this.heads = layers.map(({ n_head }) => n_head);
    /** @type {Map<number, Uint8Array>} */
    this.layers = new Map(layers.map(({ layer, weights }) => [layer, bytesOf(weights)]));
  }

  /** Number of the first token of a row. @param {number} row */
  first(row) {
    return Math.floor((row * this.tokens.length) / this.size);
  }

  /**
   * Levels of one head, 255 * sqrt(weight): query q and key k are at q (q + 1) / 2 + k.
   * @param {number} layer
   * @param {number} place of the head among those of the reply
   */
  levels(layer, place) {
    const all = this.layers.get(layer) ?? new Uint8Array();
    return all.subarray(place * this.triangle, (place + 1) * this.triangle);
  }

  /** @param {number} layer @param {number} place @param {number} query @param {number} key */
  weight(layer, place, query, key) {
    return key > query ? 0 : (this.levels(layer, place)[(query * (query + 1)) / 2 + key] / 255) ** 2;
  }

  /** What a token looks at: its row. @param {number} layer @param {number} place @param {number} query */
  row(layer, place, query) {
    return Array.from({ length: this.size }, (_, key) => this.weight(layer, place, query, key));
  }

  /** Who looks at a token: its column. @param {number} layer @param {number} place @param {number} key */
  column(layer, place, key) {
    return Array.from({ length: this.size }, (_, query) => this.weight(layer, place, query, key));
  }

  /** The largest weight without the first key, where many heads rest. @param {number} layer @param {number} place */
  most(layer, place) {
    const levels = this.levels(layer, place);
    let most = 0;
    for (let query = 1, at = 1; query < this.size; query++, at++)
      for (let key = 1; key <= query; key++) most = Math.max(most, levels[++at]);
    return (most / 255) ** 2 || 1;
  }

  /**
   * The strongest pairs, without the first key and without a token's look at itself.
   * @param {number} layer
   * @param {number} place
   * @param {number} n
   * @returns {{weight: number, query: number, key: number}[]}
   */
  strongest(layer, place, n) {
    const levels = this.levels(layer, place);
    const pairs = [];
    for (let query = 2; query < this.size; query++)
      for (let key = 1; key < query; key++) pairs.push({ level: levels[(query * (query + 1)) / 2 + key], query, key });
    pairs.sort((a, b) => b.level - a.level);
    return pairs.slice(0, n).map(({ level, query, key }) => ({ weight: (level / 255) ** 2, query, key }));
  }
}

/** @param {string} base64 */
function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
