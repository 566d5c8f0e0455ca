"""Shapes, texts and models for exported and imported folders."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer

MakeRun = Callable[..., Run]

IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]  # (B, T)
SHAPES: dict[str, dict[str, Any]] = {
    "uniform": {"n_layer": 2, "n_embd": 16, "n_head": 4, "vocab_size": 50304},
    "unequal": {"n_layer": 3, "n_embd": 16, "n_head_list": [4, 1, 8], "vocab_size": 320},
    "sized": {"n_layer": 2, "n_embd": 16, "n_head_list": [3, 2], "head_dim": 12, "vocab_size": 300},
    "wide": {"n_layer": 2, "n_embd": 16, "n_head": 2, "head_dim": 12, "vocab_size": 300, "dropout": 0.1},
}
FOREIGN = {
    name: {"as": name, "config": {"n_layer": 2, "n_embd": 16, "n_head": 4, "vocab_size": 270, "n_positions": 32}}
    for name in ("safetensors", "sharded", "pickle", "body", "half")
}


def text_of(size: int) -> str:
    """Words, numbers, signs, white space, and characters of several bytes."""
    rng = random.Random(size)
    pieces = [
        "the ",
        "cat's",
        " 3.14",
        "\n\n",
        "  ",
        "\t",
        "Ünïcödé ",
        "日本語",
        "🙂",
        "don't",
        " dog",
        "!?",
        "\r\n",
        "x=y",
    ]
    text = ""
    while len(text.encode()) < size:
        text += rng.choice(pieces)
    return text


def publish_run(exp: Path, name: str, tokenizer: Tokenizer, **model: Any) -> Run:
    """A run with one checkpoint, whose weights and biases are large enough to show; keywords are its shape."""
    choice = "gpt2" if tokenizer.kind == "gpt2" else {"type": "bpe", "vocab_size": tokenizer.n_vocab}
    tree = {
        "experiment_name": name,
        "model": {"block_size": 32, **model},
        "training": {"batch_size": 1, "sequence_length": 8, "total_batch_size": 8, "warmup_steps": 0},
        "data": {"tokenizer": choice, "source": "stories", "dataset": "tales"},
    }
    config = parse_config(tree).config
    run = Run.create(exp / name, config)
    state = parameters_state(random_model(config.model), config, tokenizer, step=7)
    run.publish("model_best.pt", writer(state), attempt=1, step=7, full=False, loss=1.5, val_loss=1.625)
    return run


def random_model(shape: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@dataclass(frozen=True)
class Exchange:
    """Runs that were exported, folders that transformers made, and its answer about both."""

    runs: dict[str, Run]
    folders: dict[str, Path]
    answer: dict[str, Any]
