"""Models with random parameters, their tokenizers, and runs that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from harness.training_steps import BASELINE

from model_core.checkpoint import parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import load_config
from model_core.data.sources.stories import stories
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe

# the quickstart model
TINY = [
    "model.n_layer=4", "model.n_embd=128", "model.n_head_list=[8,4,2,1]", "model.vocab_size=1280",
    "model.block_size=256", "training.sequence_length=256", "training.total_batch_size=4096",
    "data.tokenizer={type: bpe, vocab_size: 1280}",
]  # fmt: skip
_STORIES = 300


def untrained(settings: Sequence[str]) -> tuple[ExperimentConfig, GPT, Tokenizer]:
    """Build a model and its tokenizer.

    Args:
        settings: Configuration keys that differ from the baseline.

    Returns:
        Configuration, model and tokenizer.
    """
    config = load_config(BASELINE, settings)
    torch.manual_seed(0)
    return config, GPT(config.model), _tokenizer(config.model.vocab_size)


def publish(data: Path, name: str, settings: Sequence[str]) -> None:
    """Make a run with a best checkpoint.

    Args:
        data: Data root.
        name: Name of the run.
        settings: Configuration keys that differ from the baseline.
    """
    config, model, tokenizer = untrained([*settings, f"experiment_name={name}"])
    with torch.no_grad():
        # greedy text has whole characters only, so that each token is a piece of its own
        model.transformer["wte"].weight[
            [token for token in range(tokenizer.n_vocab) if not _is_whole(tokenizer, token)]
        ] = 0
    run = Run.create(Layout.under(data).run(name), config)
    state = parameters_state(model, config, tokenizer, 1)
    run.publish(BEST, writer(state), attempt=1, step=1, full=False, loss=1.0, val_loss=1.0)


def _tokenizer(vocab_size: int) -> Tokenizer:
    usual = gpt2_tokenizer()
    return usual if vocab_size >= usual.n_vocab else train_bpe(islice(stories(1, 10**9), _STORIES), vocab_size)


def _is_whole(tokenizer: Tokenizer, token: int) -> bool:
    try:
        return token != tokenizer.eot and bool(tokenizer.decode_bytes([token]).decode())
    except UnicodeDecodeError:
        return False
