"""What GPT-2's parameters are called, and how they lie, in transformers and here.

Names are the same. transformers keeps the matrices of attention and MLP as (in, out), and ours are (out, in); its
head is the token embedding and is not stored; old folders lack the prefix and store masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Size, Tensor

PREFIX, HEAD, EMBEDDING = "transformer.", "lm_head.weight", "transformer.wte.weight"
_LIES_ACROSS = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_MASK = re.compile(r"\.attn\.(masked_)?bias$")


def our_name(theirs: str) -> str | None:
    """What a stored tensor is called here; None for a mask, which is no parameter."""
    name = theirs if theirs == HEAD or theirs.startswith(PREFIX) else PREFIX + theirs
    return None if _MASK.search(name) else name


def turned(name: str, tensor: Tensor) -> Tensor:
    """From one layout to the other, by our name; a copy where the two differ."""
    return tensor.T.contiguous() if _LIES_ACROSS.search(name) else tensor.contiguous()


def stored_shape(name: str, ours: Size) -> tuple[int, ...]:
    """Shape of a parameter of ours in a file of transformers."""
    return tuple(reversed(ours)) if _LIES_ACROSS.search(name) else tuple(ours)


def stored_shapes(ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes that a folder must hold for a model of ours, by our names; the head apart.

    Args:
        ours: The model's state; only its shapes are read.
    """
    return {name: stored_shape(name, tensor.shape) for name, tensor in ours.items() if name != HEAD}
