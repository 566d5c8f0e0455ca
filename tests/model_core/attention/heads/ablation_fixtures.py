"""Runs whose every layer matters, with a dataset of random tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.storage.dataset import MANIFEST, SPLITS, TOKENIZER, Dataset
from model_core.storage.files import Layout, write_json
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, train_bpe

SHAPES = {"unequal": (8, 4, 2, 1), "uniform": (4, 4, 4, 4)}
T, N = 16, 10  # tokens of a window, windows
TOKENS = N * T


def tree_of(heads: tuple[int, ...]) -> dict[str, Any]:
    return {
        "experiment_name": "mine",
        "model": {
            "n_layer": len(heads), "n_embd": 16, "n_head_list": list(heads), "vocab_size": 300, "block_size": T,
        },
        "training": {"batch_size": 1, "sequence_length": 8, "total_batch_size": 8, "warmup_steps": 0},
        "data": {"dataset": "tales", "tokenizer": {"type": "bpe", "vocab_size": 300}},
    }  # fmt: skip


def random_model(heads: tuple[int, ...]) -> GPT:
    """Weights and biases are large enough that every head shows."""
    torch.manual_seed(0)
    model = GPT(parse_config(tree_of(heads)).config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval().requires_grad_(requires_grad=False)


def random_ids(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 280, shape)


def make_run(layout: Layout, heads: tuple[int, ...]) -> Run:
    """A run with its best checkpoint, and its dataset."""
    config = parse_config(tree_of(heads)).config
    run = Run.create(layout.run("mine"), config)
    tokenizer = train_bpe(["a tale of two heads " * 40], 280)
    state = parameters_state(random_model(heads), config, tokenizer, step=7)
    run.publish("model_best.pt", writer(state), attempt=1, step=7, full=False, loss=1.5, val_loss=1.625)
    add_dataset(layout.dataset("tales"), tokenizer)
    return run


def add_dataset(directory: Path, tokenizer: Tokenizer, *, tokens: int = TOKENS + 40) -> Dataset:
    dataset = Dataset.named("tales", directory)
    directory.mkdir(parents=True)
    for split in SPLITS:
        np.save(dataset.split(split), random_ids(tokens).astype(np.uint16))
    write_json(directory / TOKENIZER, tokenizer.to_dict())
    splits = {split: {"file": dataset.split(split).name, "tokens": tokens, "text_bytes": tokens} for split in SPLITS}
    write_json(directory / MANIFEST, {"splits": splits, "tokenizer": {"file": TOKENIZER}})
    return dataset
