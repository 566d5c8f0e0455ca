/** Keys of the view Attention. */

/**
 * @param {object} on
 * @param {ReturnType<typeof import("./step_slider.js").stepSlider>} on.slider
 * @param {(layers: number, heads: number) => void} on.move to another layer or head
 * @param {() => void} on.fullScreen
 * @param {() => void} on.scale
 * @param {() => void} on.letGo of the pinned token
 * @returns {import("../../keys.js").Key[]}
 */
export function attentionKeys({ slider, move, fullScreen, scale, letGo }) {
  const unless = (/** @type {KeyboardEvent} */ event) => event.target === slider.input; // it has arrows of its own
  const onButton = (/** @type {KeyboardEvent} */ { target }) =>
    target instanceof Element && target.matches("button, a");
  /** @param {(way: 1 | -1) => unknown} act @param {string} back */
  const by =
    (act, back) =>
    (/** @type {KeyboardEvent} */ { key }) =>
      void act(key === back ? -1 : 1);
  return [
    {
      key: ["ArrowUp", "ArrowDown"],
      what: "another head of the layer",
      unless,
      run: by((way) => move(0, way), "ArrowUp"),
    },
    { key: ["ArrowLeft", "ArrowRight"], what: "another layer", unless, run: by((way) => move(way, 0), "ArrowLeft") },
    { key: [",", "."], what: "an earlier, a later checkpoint", run: by((way) => slider.moveBy(way), ",") },
    { key: " ", what: "run through the checkpoints", unless: onButton, run: slider.toggle },
    { key: "f", what: "one head in full screen", run: fullScreen },
    { key: "s", what: "scale: 0 to 1, or per head", run: scale },
    { key: "Escape", what: "let the pinned token go", run: letGo },
  ];
}
