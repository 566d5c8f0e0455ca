"""Two ranks that share the rows of a step compute what one process computes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.training.distributed import ProcessGroup
from tests.model_core.training.rank import gradients_of_a_step, state_of

REPOSITORY = Path(__file__).parents[3]
ALIKE = {"rel": 1e-5}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they saw."""
    place = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "model_core.launch", "--processes", "2", "--", "tests.model_core.training.rank"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(place)], cwd=REPOSITORY, env=environment, check=True)
    return place


@pytest.fixture(scope="module")
def seen(directory: Path) -> list[dict[str, Any]]:
    return [json.loads((directory / f"seen{rank}.json").read_text()) for rank in (0, 1)]


def test_loss_and_gradients_of_two_processes_are_those_of_one(directory: Path, seen: list[dict[str, Any]]) -> None:
    loss, gradients = gradients_of_a_step(state_of(ProcessGroup()))
    shared = [torch.load(directory / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*shared)
    assert float((shared[0] - gradients).norm() / gradients.norm()) < 1e-5
    assert [rank["loss"] for rank in seen] == [pytest.approx(loss, **ALIKE)] * 2


def test_each_process_draws_random_numbers_of_its_own(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["draw"] != seen[1]["draw"]


@pytest.mark.parametrize(("fault", "code"), [("non_finite", "non_finite_loss"), ("short", "cuda_oom")])
def test_what_goes_wrong_at_one_ends_both_with_their_states_as_before(
    seen: list[dict[str, Any]], fault: str, code: str
) -> None:
    end = {"code": code, "batch_size": 4, "position": 0, "untouched": True}
    assert [rank[fault] for rank in seen] == [end, end]


def test_memory_that_runs_out_at_one_halves_the_rows_of_both(seen: list[dict[str, Any]]) -> None:
    end = {"code": "done", "batch_size": 2, "position": 32, "untouched": False}
    assert [rank["halved"] for rank in seen] == [end, end]


def test_both_stop_when_one_is_asked(seen: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in seen] == [[False, 0], [False, 0]]
