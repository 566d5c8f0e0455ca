"""Checkpoints of nanoGPT and programs like it: weights beside the arguments of the model.

Parameter names and layouts are ours. What differs: buffers of the causal mask are saved too, a model without
biases has none, and the arguments may lack what only later programs know, such as a head count for each layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_core.checkpoint import clean
from model_core.config import ModelConfig
from model_core.gpt import GPT
from model_core.records.errors import CheckpointMismatch, CheckpointRefused

_MASK = re.compile(r"\.attn\.(masked_)?bias$")
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def is_nanogpt(content: Any) -> bool:
    """Whether a loaded file has nanoGPT's form."""
    return isinstance(content, Mapping) and all(
        isinstance(content.get(key), Mapping) for key in ("model", "model_args")
    )


def model_of(content: Mapping[str, Any], file: str) -> ModelConfig:
    """The shape of a nanoGPT model; without a list of heads every layer has the same.

    Args:
        content: With ``model_args``.
        file: For messages.

    Raises:
        CheckpointRefused: The arguments are no model of ours.
    """
    known = {key: value for key, value in content["model_args"].items() if key in ModelConfig.model_fields}
    try:
        return ModelConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("model_args", *first["loc"])))
        raise CheckpointRefused(file, f"{place}: {first['msg']}, got {str(first['input'])[:100]}") from None


def weights_of(content: Mapping[str, Any], model: GPT, file: str) -> dict[str, Tensor]:
    """The weights of a nanoGPT checkpoint under the names that a model of ours has.

    Args:
        content: With ``model``.
        model: Of the shape of `model_of`; it is only asked for names and shapes.
        file: For messages.

    Returns:
        Without the masks; biases that the other model does without are zero.

    Raises:
        CheckpointMismatch: Its head does not read with the token embedding, as ours does.
    """
    weights = {name: tensor for name, tensor in clean(content["model"]).items() if not _MASK.search(name)}
    if _EMBEDDING in weights and not torch.equal(weights.setdefault(_HEAD, weights[_EMBEDDING]), weights[_EMBEDDING]):
        raise CheckpointMismatch(f"{file} has a head of its own; here {_HEAD} and {_EMBEDDING} are one")
    if not any(name.endswith(".bias") for name in weights):
        ours = model.state_dict()
        weights |= {name: torch.zeros_like(ours[name]) for name in ours if name.endswith(".bias")}
    return weights
