"""Time to draw a layer's attention picture, compared with a plain grid of matplotlib's imshow.

    make bench NAME=pictures

Both draw the same twelve heads and write a PNG to memory, alternating; the ratio is the median over pairs.
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

from model_core.attention.pictures.plot import layer_picture

HEADS, LENGTHS, PAIRS, COLUMNS, DPI = 12, (20, 50, 512), 5, 4, 150


def random_attention(tokens: int) -> NDArray[np.float32]:
    """Draw random causal attention, (H, T, T)."""
    logits = np.random.default_rng(0).normal(scale=2, size=(HEADS, tokens, tokens))  # (H, T, T)
    logits[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def plain_grid(attention: NDArray[np.float32]) -> bytes:
    """Draw the same with subplots, imshow, tight_layout and savefig."""
    rows = -(-HEADS // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 4 * rows))
    FigureCanvasAgg(figure)
    for head, axes in enumerate(figure.subplots(rows, COLUMNS).flat):
        axes.imshow(attention[head], cmap="viridis", vmin=0, vmax=1)
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
    """Print a row for each length."""
    print(f"{'tokens':>6} {'plain ms':>9} {'ours ms':>8} {'ratio':>6}  (medians of {PAIRS} pairs, warmed up)")
    for length in LENGTHS:
        attention, tokens = random_attention(length), [f"t{i}" for i in range(length)]
        ours, plain = partial(layer_picture, attention, tokens, layer=0), partial(plain_grid, attention)
        ours(), plain()
        pairs = [(seconds(plain), seconds(ours)) for _ in range(PAIRS)]
        ratio = statistics.median(a / b for a, b in pairs)
        slow, fast = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
        print(f"{length:>6} {slow:>9.0f} {fast:>8.1f} {ratio:>6.1f}")


if __name__ == "__main__":
    main()
