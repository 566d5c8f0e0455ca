/**
 * Pictures of one head: a thumbnail, and the large matrix with its tokens. Token i stands once, level, beside cell (i, i):
 * the end of its row and the top of its column. What no token can see has no colour.
 *
 * @typedef {import("./weights.js").Weights} Weights
 * @typedef {{weights: Weights, layer: number, place: number, most: number}} Head most: the weight with the full colour
 * @typedef {{query: number | null, key: number | null}} Mark
 */
import { token } from "../format.js";
import { colour, weightRamp } from "../palette.js";

const GAP_FROM = 7; // pixels of a cell
const LABEL_WIDTH = 76;
const LABEL_PX = 11;
const THUMBNAIL_TOKENS = 96;

/**
 * Draw one head, one pixel a weight; of more tokens the largest weight of each block, so that thin lines survive. Its
 * size on the page comes from CSS, with `image-rendering: pixelated`.
 * @param {HTMLCanvasElement} canvas
 * @param {Head} head
 */
export function drawThumbnail(canvas, { weights, layer, place, most }) {
  const { size } = weights;
  const block = Math.ceil(size / THUMBNAIL_TOKENS);
  const side = Math.ceil(size / block);
  const levels = weights.levels(layer, place);
  const largest = new Uint8Array(side * side);
  for (let query = 0, at = 0; query < size; query++) {
    const row = Math.floor(query / block) * side;
    for (let key = 0; key <= query; key++, at++) {
      const cell = row + Math.floor(key / block);
      if (levels[at] > largest[cell]) largest[cell] = levels[at];
    }
  }
  putImage(canvas, side, most, (query, key) => largest[query * side + key]);
}

/**
 * How large the cells of a matrix can be.
 * @param {number} tokens
 * @param {number} width free pixels
 * @param {number} height free pixels
 * @returns {number} whole pixels, at least 1
 */
export function cellSize(tokens, width, height) {
  return Math.max(1, Math.floor(Math.min((width - LABEL_WIDTH) / tokens, (height - 2) / tokens, 26)));
}

/**
 * Draw the large matrix with its labels and the frames of the marked query and key.
 * @param {HTMLCanvasElement} canvas
 * @param {Head} head
 * @param {{cell: number, mark?: Mark}} options
 */
export function drawMatrix(canvas, head, { cell, mark = { query: null, key: null } }) {
  drawCells(canvas, head, cell);
  drawFrames(canvas, head.weights, { cell, mark });
}

/**
 * Draw the cells alone. For long texts the frames go on a second canvas above, with `drawFrames`, so that pointing does
 * not draw all cells again.
 * @param {HTMLCanvasElement} canvas
 * @param {Head} head
 * @param {number} cell
 */
export function drawCells(canvas, { weights, layer, place, most }, cell) {
  const { size } = weights;
  const levels = weights.levels(layer, place);
  const context = prepare(canvas, size, cell);
  if (cell < GAP_FROM) {
    const image = document.createElement("canvas");
    putImage(image, size, most, (query, key) => levels[(query * (query + 1)) / 2 + key]);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, size * cell, size * cell);
    return;
  }
  const ramp = weightRamp();
  const gain = 1 / Math.sqrt(most);
  for (let query = 0, at = 0; query < size; query++)
    for (let key = 0; key <= query; key++, at++) {
      const level = 3 * Math.min(255, Math.round(levels[at] * gain));
      context.fillStyle = `rgb(${ramp[level]},${ramp[level + 1]},${ramp[level + 2]})`;
      context.fillRect(key * cell, query * cell, cell - 1, cell - 1);
    }
}

/**
 * Draw labels and frames: the row of the query blue, the column of the key orange. A query without a key shows its row
 * and who looks at it.
 * @param {HTMLCanvasElement} canvas with the cells, or another one above it
 * @param {Weights} weights
 * @param {{cell: number, mark: Mark, isAlone?: boolean}} options isAlone: the canvas is another one
 */
export function drawFrames(canvas, weights, { cell, mark: { query, key }, isAlone = false }) {
  const { size } = weights;
  const context = isAlone
    ? prepare(canvas, size, cell)
    : /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const [look, seen] = [colour("--look"), colour("--seen")];
  if (query != null) {
    const column = key ?? query;
    const first = key == null ? column + 1 : column;
    context.lineWidth = 1.5;
    context.strokeStyle = look;
    context.strokeRect(-1, query * cell - 1, (query + 1) * cell + 1, cell + 1);
    context.strokeStyle = seen;
    if (first < size) context.strokeRect(column * cell - 1, first * cell - 1, cell + 1, (size - first) * cell + 1);
  }
  const marked = [query, key].filter((i) => i != null);
  const every = Math.ceil(LABEL_PX / cell);
  const family = getComputedStyle(document.body).fontFamily;
  context.textBaseline = "middle";
  for (let i = 0; i < size; i++) {
    const isMarked = marked.includes(i);
    if (!isMarked && (i % every || marked.some((other) => Math.abs(other - i) * cell < LABEL_PX))) continue;
    context.font = `${isMarked ? "600 " : ""}${LABEL_PX}px ${family}`;
    context.fillStyle = i === query ? look : isMarked ? seen : colour("--ink-2");
    context.fillText(token(weights.tokens[weights.first(i)]).slice(0, 16), (i + 1) * cell + 5, (i + 0.5) * cell);
  }
}

/**
 * Find the cell below the pointer.
 * @param {MouseEvent} event on the canvas
 * @param {Weights} weights
 * @param {number} cell
 * @returns {{query: number, key: number} | null} null beside the triangle
 */
export function cellAt(event, weights, cell) {
  const query = Math.floor(event.offsetY / cell);
  const key = Math.floor(event.offsetX / cell);
  return query >= 0 && key >= 0 && query < weights.size && key <= query ? { query, key } : null;
}

/** @param {HTMLCanvasElement} canvas @param {number} size @param {number} cell */
function prepare(canvas, size, cell) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [size * cell + LABEL_WIDTH, size * cell + 2];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.setProperty("width", `${width}px`);
  canvas.style.setProperty("height", `${height}px`);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.scale(ratio, ratio);
  return context;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number} side
 * @param {number} most
 * @param {(query: number, key: number) => number} levelAt
 */
function putImage(canvas, side, most, levelAt) {
  canvas.width = canvas.height = side;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(side, side);
  const ramp = weightRamp();
  const gain = 1 / Math.sqrt(most);
  for (let query = 0; query < side; query++)
    for (let key = 0; key <= query; key++) {
      const level = 3 * Math.min(255, Math.round(levelAt(query, key) * gain));
      const at = 4 * (query * side + key);
      image.data[at] = ramp[level];
      image.data[at + 1] = ramp[level + 1];
      image.data[at + 2] = ramp[level + 2];
      image.data[at + 3] = 255;
    }
  context.putImageData(image, 0, 0);
}
