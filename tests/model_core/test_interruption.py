"""A run that was stopped or killed resumes exactly, compiled or not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_core.gpt import GPT
from model_core.hardware.device import describe_machine
from model_core.storage.run import Run
from model_core.train import main
from tests.model_core.event_log import events_of, series_of
from tests.polling import eventually

pytestmark = [pytest.mark.usefixtures("signals"), pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")]
Tiny = Callable[..., Path]


def start(file: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "model_core.train", "--config", str(file), *more]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet)


def frozen_in_a_write(process: subprocess.Popen[bytes], run: Run) -> bool:
    """Stop a process; it stays stopped only if a checkpoint was half written at that moment."""
    os.kill(process.pid, signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the run ended before it was caught"
    if any(path.stat().st_size for path in run.path.glob(".model_*.pt.*.tmp")):
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_goes_on_bit_for_bit(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    changes = {"model": {"dropout": 0.1}, "device": {"dtype": dtype}, "training": {"max_steps": 200}}
    main(["--config", str(tiny("straight", **changes))])
    file, run = tiny("cut", **changes), Run(tmp_path / "exp" / "cut")
    process = start(file)
    eventually(lambda: len(events_of(run.path, "checkpoint")) >= 2)
    process.kill()
    process.wait()
    assert main(["--config", str(file), "--resume"]) == 0
    resumed = events_of(run.path, "resumed")[0]
    assert resumed["step"] > 0
    second = [event["step"] for event in events_of(run.path, "step") if event["attempt"] == 2]
    assert min(second) == resumed["step"] + 1
    assert series_of(run.path) == series_of(tmp_path / "exp" / "straight")


def test_a_stop_saves_and_says_75(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(training={"max_steps": 100_000}), Run(tmp_path / "exp" / "tiny")
    process = start(file)
    eventually(lambda: len(events_of(run.path, "step")) >= 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    last = events_of(run.path, "step")[-1]["step"]
    assert run.resolve("latest").step == last
    assert json.loads((run.path / "outcome.json").read_text())["outcome"] == "stopped"


@pytest.mark.slow
def test_a_supervised_run_saves_when_its_supervisor_is_gone(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny(training={"max_steps": 100_000}), Run(tmp_path / "exp" / "tiny")
    arguments = [sys.executable, "-m", "model_core.train", "--config", str(file), "--attempt", "3", "--job-id", "job_a"]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    eventually(lambda: len(events_of(run.path, "step")) >= 3)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 75
    outcome = json.loads((run.path / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["attempt"], outcome["reason"]) == ("stopped", 3, "supervisor gone")


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(tiny: Tiny, tmp_path: Path) -> None:
    often = {
        "training": {"max_steps": 30},
        "evaluation": {"checkpoint_every": 1, "sample_num": 0},
        "model": {"dropout": 0.1},
    }
    assert main(["--config", str(tiny("straight", **often))]) == 0
    file, run = tiny("cut", **often), Run(tmp_path / "exp" / "cut")
    process = start(file)
    eventually(lambda: run.events.exists() and len(events_of(run.path, "checkpoint")) >= 2)
    eventually(lambda: frozen_in_a_write(process, run), every_s=0.001)
    process.kill()
    process.wait()
    told = [event["step"] for event in events_of(run.path, "checkpoint") if event["file"] != "model_best.pt"]

    assert main(["--config", str(file), "--resume"]) == 0

    (resumed,) = events_of(run.path, "resumed")
    assert resumed["step"] in {told[-1], told[-1] + 1}  # one more, where it had all its bytes and only lacked its name
    assert not list(run.path.glob(".*.tmp"))
    assert series_of(run.path) == series_of(tmp_path / "exp" / "straight")


@pytest.mark.parametrize(("given", "threads"), [("", describe_machine().cores), ("3", 3)], ids=["cores", "environment"])
def test_the_number_of_threads_is_decided_once_and_stored(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    short = {"training": {"max_steps": 1, "warmup_steps": 0}, "device": {"threads": None}}
    main(["--config", str(tiny(**short))])
    run = Run(tmp_path / "exp" / "tiny")
    state = torch.load(run.path / "model_latest.pt", weights_only=True)
    assert run.config().device.threads == state["config"]["device"]["threads"] == torch.get_num_threads() == threads
    assert events_of(run.path, "start")[0]["used"]["threads"] == threads


COMPILED = {
    "model": {"dropout": 0.1},
    "training": {"batch_size": 4, "sequence_length": 32, "total_batch_size": 1024, "max_steps": 40},
    "evaluation": {"sample_every": 1000, "sample_num": 0},
    "execution": {"use_compile": True},
    "device": {"dtype": "bfloat16", "threads": 2},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_goes_on_bit_for_bit_and_shares_its_states_with_eager_ones(tiny: Tiny, tmp_path: Path) -> None:
    straight, cut, eager = (Run(tmp_path / "exp" / name) for name in ("straight", "cut", "eager"))
    assert start(tiny("straight", **COMPILED)).wait() == 0
    process = start(tiny("cut", **COMPILED))
    eventually(lambda: cut.events.exists() and len(events_of(cut.path, "step")) >= 8)
    process.terminate()
    assert process.wait() == 75
    assert start(tiny("cut", **COMPILED), "--resume").wait() == 0
    assert events_of(cut.path, "resumed")[0]["step"] >= 8
    assert series_of(cut.path) == series_of(straight.path)
    assert not [event for event in events_of(straight.path, "warning") if event["code"] == "compile_failed"]

    state = torch.load(straight.path / "model_00035.pt", weights_only=True)
    assert state["model"].keys() == GPT(straight.config().model).state_dict().keys()
    from_35 = {"execution": {"use_compile": False}, "checkpoint": {"load_checkpoint": "straight/model_00035.pt"}}
    assert start(tiny("eager", **{**COMPILED, **from_35})).wait() == 0
    assert series_of(eager.path) == pytest.approx(
        {step: series_of(straight.path)[step] for step in range(36, 41)}, rel=1e-2
    )
