"""The program with the probe of heads: it changes no bit, and events do not depend on stops, kills and processes."""

import os
import random
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.attention.heads.frames import frame_steps, load_frame
from tests.model_core.event_log import events_of, series_of
from tests.polling import eventually

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"), pytest.mark.timeout(1800)]
Tiny = Callable[..., Path]
CPP = os.environ.get("CXX", "g++")
# 192 tokens of the probe, so 6,144 trained ones between two readings: 3 steps of 2,048, at validations
OFTEN: dict[str, Any] = {
    "model": {"block_size": 8, "n_embd": 24, "n_head_list": [4, 3], "dropout": 0.1},
    "training": {
        "batch_size": 64, "sequence_length": 8, "total_batch_size": 2048, "max_steps": 12, "max_lr": 0.01,
    },
    "data": {"tokenizer": {"type": "bpe", "vocab_size": 288}},
    "evaluation": {"val_loss_every": 1, "val_max_steps": 1, "sample_num": 0, "checkpoint_every": 4},
}  # fmt: skip
ONE = ("-m", "model_core.train")
TWO = ("-m", "model_core.launch", "--processes", "2", "--", "model_core.train")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text of enough tokens for random sequences, so that `induction` and `duplicate` are measured as well."""
    rng, file = random.Random(0), tmp_path_factory.mktemp("letters") / "text.txt"
    documents = [" ".join("".join(rng.choices(string.ascii_letters, k=3)) for _ in range(30)) for _ in range(300)]
    file.write_text("\n\n".join(documents), encoding="utf-8")
    return f"file:{file}"


@pytest.fixture
def often(tiny: Tiny, letters: str) -> Tiny:
    """Write the configuration of a run that is probed often and return its file."""

    def write(name: str, tree: dict[str, Any]) -> Path:
        return tiny(name, **changed(tree, data={"source": letters}))

    return write


def changed(tree: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {name: {**tree.get(name, {}), **sections.get(name, {})} for name in {*tree, *sections}}


def start(file: Path, *more: str, program: tuple[str, ...] = ONE) -> subprocess.Popen[str]:
    command = [sys.executable, *program, "--config", str(file), *more]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **quiet)


def finish(process: subprocess.Popen[str]) -> int:
    """The exit code; what the program says is shown when a test fails."""
    sys.stderr.write(process.communicate()[1])
    return process.returncode


def run_of(file: Path) -> Path:
    return file.parent / "exp" / file.stem


def readings(run: Path) -> dict[int, dict[str, Any]]:
    """The last event of every step, without what differs between attempts."""
    return {
        event["step"]: {key: event[key] for key in ("probe", "values", "types")} for event in events_of(run, "heads")
    }


def frames(run: Path) -> dict[int, list[list[Any]]]:
    return {step: [layer.tolist() for layer in load_frame(run, step).layers] for step in frame_steps(run)}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Parameters, moments and random state of every checkpoint of a run."""
    found = {}
    for file in sorted(run.glob("model_*.pt")):
        state = torch.load(file, weights_only=True)
        found |= {f"{file.name} {name}": value for name, value in state["model"].items()}
        if "optimizer" in state:
            moments = state["optimizer"]["state"].items()
            found |= {f"{file.name} {at} {name}": value for at, one in moments for name, value in one.items()}
            found[f"{file.name} random"] = state["rng"]["cpu"]
    return found


def assert_equal_bits(run: Path, expected: Path) -> None:
    assert series_of(run) == series_of(expected)
    assert series_of(run, "validation", "val_loss") == series_of(expected, "validation", "val_loss")
    ours, theirs = tensors(run), tensors(expected)
    assert theirs.keys() <= ours.keys()  # a pause leaves one checkpoint more
    assert len([name for name in theirs if name.endswith("random")]) >= 3
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "program"),
    [
        ({"model": {"dropout": 0.0}}, ONE),
        ({}, ONE),
        ({"device": {"dtype": "bfloat16"}}, ONE),
        ({"execution": {"use_compile": True}, "device": {"dtype": "bfloat16"}}, ONE),
        ({}, TWO),
    ],
    ids=["float32", "dropout", "bfloat16", "compiled", "two processes"],
)
def test_losses_and_checkpoints_are_the_same_bits_with_the_probe_and_without(
    often: Tiny, sections: dict[str, Any], program: tuple[str, ...]
) -> None:
    if "execution" in sections and shutil.which(CPP) is None:
        pytest.skip(f"torch.compile needs a C++ compiler, and there is no {CPP}")
    tree = changed(OFTEN, **sections)
    probed, plain = often("probed", tree), often("plain", changed(tree, evaluation={"head_statistics": False}))
    assert [finish(start(file, program=program)) for file in (probed, plain)] == [0, 0]
    told = readings(run_of(probed))
    assert list(told) == [0, 3, 6, 9, 12]
    assert told[12]["values"]["induction"] != told[0]["values"]["induction"] != [[None] * 4, [None] * 3]
    assert events_of(run_of(plain), "heads") == []
    warned = [event["code"] for run in (probed, plain) for event in events_of(run_of(run), "warning")]
    assert warned == ["small_heads"] * 2
    used = [event["used"] for run in (probed, plain) for event in events_of(run_of(run), "start")]
    assert [bool(one["compile_mode"]) for one in used] == ["execution" in sections] * 2
    assert_equal_bits(run_of(probed), run_of(plain))


LONG = changed(OFTEN, training={"max_steps": 60}, evaluation={"checkpoint_every": 5})


@pytest.fixture
def straight(often: Tiny) -> Path:
    """A run that was never stopped, with a reading at every third step."""
    file = often("straight", LONG)
    assert finish(start(file)) == 0
    assert list(readings(run_of(file))) == list(range(0, 61, 3))
    return run_of(file)


def assert_same_history(run: Path, straight: Path) -> None:
    (resumed,) = events_of(run, "resumed")
    assert 0 < resumed["step"] < 60
    expected, told = readings(straight), events_of(run, "heads")
    assert readings(run) == expected
    assert [event["step"] for event in told if event["attempt"] == 2] == [
        step for step in expected if step > resumed["step"]
    ]
    assert [{key: event[key] for key in ("probe", "values", "types")} for event in told] == [
        expected[event["step"]] for event in told
    ]
    assert frames(run) == frames(straight)
    assert_equal_bits(run, straight)


@pytest.mark.slow
def test_a_killed_run_has_the_history_of_one_that_was_never_stopped(often: Tiny, straight: Path) -> None:
    file = often("cut", LONG)
    process = start(file)
    eventually(lambda: [event for event in events_of(run_of(file), "step") if event["step"] >= 17], 120, every_s=0.01)
    process.kill()
    process.communicate()
    assert finish(start(file, "--resume")) == 0
    assert_same_history(run_of(file), straight)


@pytest.mark.slow
def test_a_paused_run_has_the_history_of_one_that_was_never_stopped(often: Tiny, straight: Path) -> None:
    file = often("cut", LONG)
    process = start(file)
    eventually(lambda: [event for event in events_of(run_of(file), "step") if event["step"] >= 17], 120, every_s=0.01)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 75
    assert finish(start(file, "--resume")) == 0
    assert_same_history(run_of(file), straight)
