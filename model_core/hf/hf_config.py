"""config.json: what it must contain to be one of our models, and what an export writes.

A uniform model is a plain GPT-2. One whose layers differ, or whose heads have a stated size, names the class that is
exported with it, and has an invalid `n_head`, so that plain `GPT2LMHeadModel` refuses the folder instead of loading it
wrong. `per_layer_config` gives transformers 5 the heads of each layer, for caches of a fixed size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_core.config import ModelConfig
from model_core.errors import InvalidData
from model_core.storage.files import refuse_lfs_pointer

CONFIG, MODELING = "config.json", "modeling_headcount.py"
PLAIN, CUSTOM = "gpt2", "headcount"
EPSILON = 1e-5  # of all our norms
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")  # names of the same formula
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_SIZES = {"n_layer": "n_layer", "n_embd": "n_embd", "n_positions": "block_size", "vocab_size": "vocab_size"}
_ALIASES = {
    "n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
}  # fmt: skip
_GPT2 = {
    "n_layer": 12,
    "n_embd": 768,
    "n_positions": 1024,
    "vocab_size": 50257,
    "n_head": 12,
}  # defaults of keys that may be missing

Stored = Mapping[str, Any]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: Path of the file.

    Returns:
        Its values by key.

    Raises:
        InvalidData: The file has other content.
    """
    refuse_lfs_pointer(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidData(f"{path.name} holds no JSON object, which begins with {{")
    return value


def parse_model_config(stored: Stored) -> ModelConfig:
    """Read the shape of the model from a config.json.

    Args:
        stored: Values of the file.

    Returns:
        The shape.

    Raises:
        InvalidData: We cannot build this model; the message names key and value.
    """
    model_type = _model_type(stored)
    if model_type not in {PLAIN, CUSTOM}:
        raise _wrong("model_type", model_type, f"only {PLAIN} and {CUSTOM} can be imported")
    _same_arithmetic(stored)
    if model_type == PLAIN and stored.get("per_layer_config"):
        raise _wrong("per_layer_config", stored["per_layer_config"], f"a {PLAIN} has equal layers")
    sizes = {ours: _value(stored, theirs) for theirs, ours in _SIZES.items()}
    heads: dict[str, Any] = {"n_head": _value(stored, "n_head")}
    if model_type == CUSTOM:
        heads = {name: stored.get(name) for name in ("n_head_list", "head_dim")}
        if heads["n_head_list"] is None:
            raise _wrong("n_head_list", None, "a head count for each layer is needed")
    try:
        return ModelConfig.model_validate({**sizes, **heads, "dropout": _dropout(stored)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "n_head"
        raise InvalidData(f"{CONFIG}: {key}: {first['msg']}, got {str(first['input'])[:100]}") from None


def build_config(model: ModelConfig, eot: int) -> dict[str, Any]:
    """Build the config.json of a model.

    Args:
        model: Shape of the model.
        eot: Id of the end of text.

    Returns:
        Values by key.
    """
    sizes = {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()}
    return {
        **_identity(model),
        **sizes,
        "n_ctx": model.block_size,
        "n_inner": None,
        "activation_function": _GELU[0],
        "layer_norm_epsilon": EPSILON,
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "torch_dtype": "float32",
    }


def is_plain(model: ModelConfig) -> bool:
    """Check whether a model is a plain GPT-2: equally many heads in every layer, which share the width.

    Args:
        model: Shape of the model.

    Returns:
        True if transformers can load it without our code.
    """
    return len(set(model.heads)) == 1 and model.heads[0] * model.head_dims[0] == model.n_embd


def _identity(model: ModelConfig) -> dict[str, Any]:
    if is_plain(model):
        return {"model_type": PLAIN, "architectures": ["GPT2LMHeadModel"], "n_head": model.heads[0]}
    module = Path(MODELING).stem
    classes = {"AutoConfig": "HeadcountConfig", "AutoModel": "HeadcountModel"}
    classes["AutoModelForCausalLM"] = "HeadcountForCausalLM"
    return {
        "model_type": CUSTOM,
        "architectures": ["HeadcountForCausalLM"],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        "n_head": model.n_embd + 1,
        "n_head_list": list(model.heads),
        "head_dim": model.head_dim,
        "per_layer_config": {str(layer): {"n_head": heads} for layer, heads in enumerate(model.heads)},
    }


def _model_type(stored: Stored) -> Any:
    """The kind of model; the oldest folders name only the class."""
    classes = stored.get("architectures")
    if "model_type" in stored or not isinstance(classes, list) or not classes:
        return stored.get("model_type")
    return PLAIN if all(str(name).startswith("GPT2") for name in classes) else None


def _same_arithmetic(stored: Stored) -> None:
    """Refuse settings with which transformers computes other numbers than we do."""
    activation = stored.get("activation_function", _GELU[0])
    if activation not in _GELU:
        raise _wrong("activation_function", activation, f"ours is {_GELU[0]}")
    epsilon = stored.get("layer_norm_epsilon", EPSILON)
    if epsilon != EPSILON:
        raise _wrong("layer_norm_epsilon", epsilon, f"ours is {EPSILON}")
    width, inner = _value(stored, "n_embd"), stored.get("n_inner")
    if inner is not None and (not isinstance(width, int) or inner != 4 * width):
        raise _wrong("n_inner", inner, f"ours is 4 x n_embd, which is 4 x {width}")
    only = {
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }  # fmt: skip
    for key, value in only.items():
        if stored.get(key, value) is not value:
            raise _wrong(key, stored[key], f"ours is {json.dumps(value)}")


def _value(stored: Stored, key: str) -> Any:
    return stored.get(key, stored.get(_ALIASES.get(key, key), _GPT2[key]))


def _dropout(stored: Stored) -> Any:
    """Return the dropout that all places share; 0 where they differ, since only training uses it."""
    values = {str(stored.get(key, 0.1)): stored.get(key, 0.1) for key in _DROPOUTS}
    return next(iter(values.values())) if len(values) == 1 else 0.0


def _wrong(key: str, value: Any, right: str) -> InvalidData:
    return InvalidData(f"{CONFIG}: {key} is {json.dumps(value)[:100]}; {right}")
