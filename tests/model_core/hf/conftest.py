"""Tiny runs, their exports, and the results of transformers on those."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.hf.export import export_run
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe
from tests.model_core.hf.folders import FOREIGN, IDS, SHAPES, Exchange, MakeRun, random_model, text_of


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_bpe([text_of(2000)], 290)


@pytest.fixture(scope="session")
def make_run(bpe: Tokenizer) -> MakeRun:
    """A run with one checkpoint, whose weights and biases are large enough to show; keywords are its shape."""

    def make(exp: Path, name: str, tokenizer: Tokenizer = bpe, **model: Any) -> Run:
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

    return make


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, bpe: Tokenizer) -> Exchange:
    """One process of transformers answers every question."""
    root = tmp_path_factory.mktemp("exchange")
    tokenizers = {name: gpt2_tokenizer() if name == "uniform" else bpe for name in SHAPES}
    runs = {name: make_run(root / "exp", name, tokenizers[name], **shape) for name, shape in SHAPES.items()}
    folders = {name: root / name for name in (*SHAPES, *FOREIGN)}
    for name, run in runs.items():
        export_run(run, folders[name])
    request = {
        "ids": IDS,
        "make": {name: {**asked, "folder": str(folders[name])} for name, asked in FOREIGN.items()},
        "load": {name: {"folder": str(folders[name]), "ids": IDS, "text": text_of(10_000)} for name in SHAPES},
    }
    for name in FOREIGN:
        folders[name].mkdir()
    (root / "request.json").write_text(json.dumps(request))
    program = Path(__file__).with_name("in_transformers.py")
    subprocess.run(
        [sys.executable, "-P", str(program), str(root / "request.json"), str(root / "answer.pt")],
        check=True, stdin=subprocess.DEVNULL, cwd=root,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Exchange(runs, folders, torch.load(root / "answer.pt", weights_only=True))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.under(tmp_path / "data")
