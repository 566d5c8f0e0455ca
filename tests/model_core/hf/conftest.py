"""Tiny runs, their exports, and the results of transformers on those."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.hf.export import export_run
from model_core.storage.files import Layout
from model_core.tokenizer import Tokenizer, gpt2_tokenizer, train_bpe
from tests.model_core.hf.folders import FOREIGN, IDS, SHAPES, Exchange, MakeRun, publish_run, text_of


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return train_bpe([text_of(2000)], 290)


@pytest.fixture(scope="session")
def make_run(bpe: Tokenizer) -> MakeRun:
    """Publish a run with one checkpoint, with our small tokenizer unless another is given."""
    return lambda exp, name, tokenizer=bpe, **model: publish_run(exp, name, tokenizer, **model)


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, bpe: Tokenizer) -> Exchange:
    """One process of transformers answers every question."""
    root = tmp_path_factory.mktemp("exchange")
    tokenizers = {name: gpt2_tokenizer() if name == "uniform" else bpe for name in SHAPES}
    runs = {name: make_run(root / "exp", name, tokenizers[name], **shape) for name, shape in SHAPES.items()}
    folders = {name: root / name for name in (*SHAPES, *FOREIGN)}
    for name, run in runs.items():
        export_run(run, folders[name])
    for name in FOREIGN:
        folders[name].mkdir()
    made = {name: {**asked, "folder": str(folders[name])} for name, asked in FOREIGN.items()}
    return Exchange(runs, folders, ask_transformers(root / "5", folders, make=made))


@pytest.fixture(scope="session")
def babylm(tmp_path_factory: pytest.TempPathFactory, exchange: Exchange) -> Exchange:
    """The same folders in the transformers that BabyLM's evaluation pins, which lies in a folder of its own."""
    packages = os.environ.get("BABYLM_PACKAGES", "")
    if not (Path(packages) / "transformers").is_dir():
        pytest.skip("BABYLM_PACKAGES names no folder with transformers 4.51.3; .ci/run installs one")
    answer = ask_transformers(tmp_path_factory.mktemp("babylm") / "4", exchange.folders, PYTHONPATH=packages)
    return Exchange(exchange.runs, exchange.folders, answer)


@pytest.fixture(params=["exchange", pytest.param("babylm", marks=pytest.mark.babylm)])
def anywhere(request: pytest.FixtureRequest) -> Exchange:
    """Both versions of transformers, one after the other."""
    answered: Exchange = request.getfixturevalue(request.param)
    return answered


def ask_transformers(
    directory: Path, folders: dict[str, Path], *, make: dict[str, Any] | None = None, **environment: str
) -> dict[str, Any]:
    """Run a process of transformers that makes folders, and loads those of our runs."""
    directory.mkdir()
    load = {name: {"folder": str(folders[name]), "ids": IDS, "text": text_of(10_000)} for name in SHAPES}
    (directory / "request.json").write_text(json.dumps({"ids": IDS, "make": make or {}, "load": load}))
    program = Path(__file__).with_name("in_transformers.py")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-P", str(program), str(directory / "request.json"), str(directory / "answer.pt")],
        check=True, stdin=subprocess.DEVNULL, cwd=directory, env={**os.environ, **offline, **environment},
    )  # fmt: skip
    answer: dict[str, Any] = torch.load(directory / "answer.pt", weights_only=True)
    return answer


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.under(tmp_path / "data")
