"""How fast a layer's attention picture is drawn, beside a plain grid of matplotlib's imshow.

    make bench NAME=pictures

Both draw the same twelve heads and write a PNG in memory, taking turns; the ratio is the median over pairs.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_core.attention.plot import layer_picture

HEADS, LENGTHS, PAIRS, COLUMNS, DPI = 12, (20, 50, 512), 5, 4, 150


def weights_of(tokens: int) -> NDArray[np.float32]:
    """Random causal attention, (H, T, T)."""
    scores = np.random.default_rng(0).normal(scale=2, size=(HEADS, tokens, tokens))  # (H, T, T)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def plain_grid(weights: NDArray[np.float32]) -> bytes:
    """What a first version does: subplots, imshow, tight_layout, savefig."""
    rows = -(-HEADS // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 4 * rows))
    FigureCanvasAgg(figure)
    for head, axes in enumerate(figure.subplots(rows, COLUMNS).flat):
        axes.imshow(weights[head], cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"Head {head}")
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI)
    return file.getvalue()


def seconds(draw: Callable[[], bytes]) -> float:
    """Time one call."""
    began = time.perf_counter()
    draw()
    return time.perf_counter() - began


def main() -> None:
    """Print a row a length."""
    print(f"{'tokens':>6} {'plain ms':>9} {'ours ms':>8} {'ratio':>6}  (medians of {PAIRS} pairs, first drawing apart)")
    for length in LENGTHS:
        weights, tokens = weights_of(length), [f"t{i}" for i in range(length)]
        ours, plain = partial(layer_picture, weights, tokens, layer=0), partial(plain_grid, weights)
        ours(), plain()
        pairs = [(seconds(plain), seconds(ours)) for _ in range(PAIRS)]
        ratio = statistics.median(a / b for a, b in pairs)
        slow, fast = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
        print(f"{length:>6} {slow:>9.0f} {fast:>8.1f} {ratio:>6.1f}")


if __name__ == "__main__":
    main()
