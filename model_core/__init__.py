"""Train GPT-2 models with any number of heads in each layer, generate text with them, and see where every head looks.

The names below are imported when they are first used, so that reading a configuration never loads torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "GPT": "gpt",
    "MLP": "gpt",
    "Block": "gpt",
    "CausalSelfAttention": "gpt",
    "GPTConfig": "config:ModelConfig",
    "DataLoaderLiteConfig": "data.loader:LoaderConfig",
    "load_tokens": "data.loader",
    "load_config": "config_loader",
    "setup_experiment_dirs": "storage.run",
    "get_lr": "schedule",
    "extract_attention_patterns": "attention.capture:capture",
    "plot_layer_attention": "attention.pictures.plot",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, original = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{home}"), original or name)
