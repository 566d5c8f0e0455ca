"""A tiny training by hand, below a data root, and what it says about itself."""

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from model_core.storage.events import read_events
from model_core.storage.run import Run
from model_core.train import main

TREE: dict[str, Any] = {
    "experiment_name": "tiny",
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": [2, 1], "vocab_size": 384, "block_size": 32},
    "training": {"batch_size": 2, "sequence_length": 16, "total_batch_size": 64, "warmup_steps": 0, "max_steps": 4},
    "data": {"dataset": "text", "source": "file:text.txt", "tokenizer": {"type": "bpe", "vocab_size": 384}},
    "evaluation": {"val_loss_every": 2, "val_max_steps": 1, "sample_num": 0, "checkpoint_every": 2},
    "device": {"device": "cpu", "dtype": "float32", "threads": 1},
    "testing": {"num_test_samples": 1, "test_sample_length": 16, "max_seq_len_viz": 4, "dpi": 20},
    "logging": {"verbose": False},
}


def write_text(root: Path, documents: int, seed: int = 0) -> None:
    """Documents of 20 to 40 words, separated by blank lines."""
    words, rng = "the cat dog sat ran on a mat hill and saw red blue bird tree".split(), random.Random(seed)
    texts = (" ".join(rng.choices(words, k=rng.randint(20, 40))) for _ in range(documents))
    root.mkdir(parents=True, exist_ok=True)
    (root / "text.txt").write_text("\n\n".join(texts))


def write_config(root: Path, **sections: dict[str, Any]) -> None:
    """Configuration of the tiny training; keyword arguments replace keys of sections."""
    tree = dict(TREE)
    for section, changes in sections.items():
        tree[section] = {**tree.get(section, {}), **changes}
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump(tree))


def train(root: Path, *arguments: str) -> int:
    """Run the program in a data root, whose files may be named relative to it; its exit code."""
    with contextlib.chdir(root), _signal_handlers_kept():
        return main(["--config", "config.yaml", "--data-root", ".", *arguments])


def run_of(root: Path, name: str = "tiny") -> Run:
    return Run.open(root / "exp" / name)


def warnings_of(root: Path, name: str = "tiny") -> list[str]:
    """Codes of the warnings, in order."""
    return [event["code"] for event in read_events(run_of(root, name).events) if event["type"] == "warning"]


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
