"""Rollout of a model beside that of even heads, and their ratio, as one picture.

Both rollouts share the scale of the color bar. The ratio has one of its own, which its name states, because it has no
upper bound.

Shapes: T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.attention.pictures.layout import Annotations, PictureStyle, layer_page
from model_core.attention.pictures.plot import draw
from model_core.attention.record import quantize

Array = NDArray[Any]

LEAST_RATIO = 2.0  # upper end of the ratio's scale; below it noise would look like a pattern


def rollout_picture(
    shares: Array, even: Array, ratio: Array, tokens: Sequence[str], *, layer: int, style: PictureStyle,
    notes: Sequence[str] = (), metadata: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """Draw three panels: the rollout, that of even heads, and their ratio.

    Args:
        shares: Rollout after the layer, (T, T).
        even: Rollout of even heads after as many layers, (T, T).
        ratio: Their ratio, (T, T).
        tokens: Label of every token.
        layer: Index of the last layer, for the title.
        style: Format, color map, resolution and labels.
        notes: Notes below the title.
        metadata: Facts that are stored in the file.

    Returns:
        The picture's file.

    Raises:
        InvalidParameters: The picture has too many pixels.
    """
    inner = [matrix[1:, 1:] for matrix in (shares, even)]
    largest = max((float(matrix.max()) for matrix in inner if matrix.size), default=0.0)
    scale_max = largest if style.scale == "auto" and largest > 0 else 1.0
    end = max(LEAST_RATIO, float(math.ceil(ratio.max())))
    names = ["Rollout", "Even heads", f"Ratio, colors from 0 to {end:.0f}"]
    labelled = len(tokens) <= style.label_max_tokens
    page = layer_page(names, title=f"Rollout to layer {layer}", notes=notes, dpi=style.dpi, labelled=labelled)
    panels = [quantize(matrix) for matrix in (shares, even, ratio / end * scale_max)]
    facts = {**(metadata or {}), "scale": f"0 to {scale_max:.4g}"}
    annotations = Annotations(tokens, scale_max=scale_max, bar_name="Share of a token", metadata=facts)
    return draw(page.checked(), [np.asarray(panel) for panel in panels], annotations, style)
