"""torch.compile: a failure falls back to eager execution with a warning."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_core.config import ModelConfig
from model_core.gpt import GPT
from model_core.storage.events import read_events, series
from model_core.training.setup import compiled, with_eager_fallback

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=20, block_size=4)
IDX = torch.zeros(1, 4, dtype=torch.long)


class Broken:
    """Stands for what a compiler made of a model; remembers how often it was tried."""

    def __init__(self, error: Exception) -> None:
        self._error, self.calls = error, 0

    def __call__(self, idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        self.calls += 1
        raise self._error


def test_a_compiler_that_fails_is_reported_once_and_not_asked_again() -> None:
    model, broken, told = GPT(MODEL), Broken(RuntimeError("no C++ compiler")), []

    def emit(kind: str, **fields: Any) -> None:
        told.append((kind, fields["code"], fields["detail"]))

    forward = with_eager_fallback(broken, model, emit)
    losses = [forward(IDX, IDX)[1] for _ in range(2)]
    assert losses == [model(IDX, IDX)[1]] * 2
    assert (broken.calls, told) == (1, [("warning", "compile_failed", "RuntimeError: no C++ compiler")])


def test_memory_that_runs_out_is_not_the_compilers_fault() -> None:
    forward = with_eager_fallback(Broken(torch.OutOfMemoryError("CUDA out of memory.")), GPT(MODEL), pytest.fail)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            forward(IDX, IDX)


def test_an_error_of_the_model_itself_stays_one() -> None:
    forward = with_eager_fallback(
        Broken(RuntimeError("no compiler")), Broken(ValueError("wrong")), lambda *_, **__: None
    )
    with pytest.raises(ValueError, match="wrong"):
        forward(IDX, IDX)


def test_the_mode_goes_to_the_compiler() -> None:
    with pytest.raises(RuntimeError, match="Unrecognized mode=slowest"):
        compiled(GPT(MODEL), "slowest", pytest.fail)


@pytest.mark.slow
def test_a_run_without_a_working_compiler_goes_on_eagerly(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for name, use_compile in (("eager", False), ("tried", True)):
        file = tiny(name, execution={"use_compile": use_compile}, training={"max_steps": 4})
        command = [sys.executable, "-m", "model_core.train", "--config", str(file)]
        environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    eager, tried = (list(read_events(tmp_path / "exp" / name / "events.jsonl")) for name in ("eager", "tried"))
    (warning,) = [event for event in tried if event.get("code") == "compile_failed"]
    assert "nowhere" in warning["detail"] or "compiler" in warning["detail"].lower()
    assert series(tried, "step", "loss") == series(eager, "step", "loss")
