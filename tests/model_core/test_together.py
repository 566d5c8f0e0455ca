"""The program as several processes: one run with the numbers of a single process."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from model_core.config_loader import load_config
from model_core.hardware.device import describe_machine
from model_core.launch import DistEnv
from model_core.train import main
from model_core.training.setup import choose_runtime
from tests.model_core.event_log import events_of, series_of
from tests.polling import eventually

pytestmark = [
    pytest.mark.usefixtures("signals"),
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
    pytest.mark.timeout(900),  # up to ten processes that load torch, or a C++ compiler, perhaps beside other work
]
REPOSITORY = Path(__file__).parents[2]
Tiny = Callable[..., Path]
LAUNCH = ("-m", "model_core.launch", "--processes")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SHORT = {
    "training": {"max_steps": 6, "batch_size": 2, "total_batch_size": 192},  # 6 rows: 3 micro batches, or 1 of 3 ranks
    "evaluation": {"checkpoint_every": 1, "max_checkpoints_to_keep": 9, "val_loss_every": 3, "sample_num": 0},
}
FOR_TWO = {**SHORT, "training": {**SHORT["training"], "total_batch_size": 128}}


def together(processes: int, *arguments: str, launcher: tuple[str, ...] = LAUNCH) -> subprocess.CompletedProcess[str]:
    several = (*launcher, str(processes), *(("--",) if launcher is LAUNCH else ("-m",)), "model_core.train")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *several, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def staying(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not left after a minute; they are ended then."""
    left = psutil.wait_procs(processes, timeout=60)[1]
    for process in left:
        process.kill()
    return left


def first_gradients(run: Path) -> torch.Tensor:
    """After the first step a moment is a constant times the gradient."""
    state = torch.load(run / "model_00001.pt", weights_only=True)
    return torch.cat([moment["exp_avg"].flatten() for moment in state["optimizer"]["state"].values()])


@pytest.mark.slow
def test_two_processes_make_the_run_that_one_makes(tiny: Tiny, tmp_path: Path) -> None:
    one, two = (tmp_path / "exp" / name for name in ("one", "two"))
    assert main(["--config", str(tiny("one", **FOR_TWO))]) == 0

    done = together(2, "--config", str(tiny("two", **FOR_TWO)))

    assert done.returncode == 0, done.stderr
    assert series_of(two) == pytest.approx(series_of(one), rel=1e-5)
    assert series_of(two, "validation", "val_loss") == pytest.approx(series_of(one, "validation", "val_loss"), rel=1e-5)
    expected, gradients = first_gradients(one), first_gradients(two)
    assert float((gradients - expected).norm() / expected.norm()) < 1e-5
    assert [event["processes"] for event in events_of(two, "start")] == [2]
    assert len(events_of(two, "step")) == 6
    names = torch.load(two / "model_final.pt", weights_only=True)["model"].keys()
    assert names == torch.load(one / "model_final.pt", weights_only=True)["model"].keys()


@pytest.mark.slow
def test_what_goes_wrong_at_another_process_is_reported_by_the_first(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny("bad", data={"shuffle": "none"}, **FOR_TWO)
    assert main(["--config", str(tiny("good", training={"max_steps": 3}))]) == 0  # prepares the data
    tokens = np.load(tmp_path / "text_data" / "text_train.npy", mmap_mode="r+")
    tokens[16 * 2 + 5] = 60_000  # in the third row: the first of rank 1
    tokens.flush()

    ended = together(2, "--config", str(file))

    outcome = json.loads((tmp_path / "exp" / "bad" / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "invalid_data")
    assert all(value in outcome["error"]["detail"] for value in ("rank 1", "text_train.npy", "60000"))
    assert ended.returncode == 2
    assert ended.stderr.count("error: rank 1: ") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "0"), "--gpu 0"),
        (("--set", "execution.train=false", "--set", "execution.test=true"), "2"),
        (("--set", "training.total_batch_size=96"), "64 and 128"),
    ],
    ids=["gpu", "test", "rows"],
)
def test_what_two_processes_cannot_do_is_refused_before_a_run_begins(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert main(["--config", str(tiny()), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


def test_each_process_gets_its_share_of_the_cores(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = load_config(tiny(device={"threads": None}))
    assert choose_runtime(config, DistEnv(rank=0, world_size=2, local_world=1)).threads == describe_machine().cores
    assert choose_runtime(config, DistEnv(rank=1, world_size=1024, local_rank=1, local_world=1024)).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # of each process
    assert choose_runtime(config, DistEnv(rank=0, world_size=2, local_world=2)).threads == 3


@pytest.mark.slow
def test_torchrun_starts_the_same_training(tiny: Tiny, tmp_path: Path) -> None:
    ours = together(2, "--config", str(tiny("ours", **FOR_TWO)))
    theirs = together(2, "--config", str(tiny("theirs", **FOR_TWO)), launcher=TORCHRUN)
    assert (ours.returncode, theirs.returncode) == (0, 0)
    assert series_of(tmp_path / "exp" / "theirs") == series_of(tmp_path / "exp" / "ours")
    assert together(2, "--config", str(tiny("theirs", **FOR_TWO)), launcher=TORCHRUN).returncode == 1


@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit_and_so_does_another_number_but_for_rounding(
    tiny: Tiny, tmp_path: Path
) -> None:
    straight, cut, alone = (tmp_path / "exp" / name for name in ("straight", "cut", "alone"))
    assert together(3, "--config", str(tiny("straight", model={"dropout": 0.1}, **SHORT))).returncode == 0
    from_3 = {"checkpoint": {"load_checkpoint": "straight/model_00003.pt"}}
    assert together(3, "--config", str(tiny("cut", model={"dropout": 0.1}, **SHORT, **from_3))).returncode == 0
    assert series_of(cut) == {step: series_of(straight)[step] for step in (4, 5, 6)}

    assert together(3, "--config", str(tiny("even", **SHORT))).returncode == 0
    from_even = {"checkpoint": {"load_checkpoint": "even/model_00003.pt"}}
    assert main(["--config", str(tiny("alone", **SHORT, **from_even))]) == 0
    expected = {step: series_of(tmp_path / "exp" / "even")[step] for step in (4, 5, 6)}
    assert series_of(alone) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_compiled_processes_go_on_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    compiled = {**FOR_TWO, "model": {"dropout": 0.1}, "execution": {"use_compile": True}}
    from_3 = {"checkpoint": {"load_checkpoint": "straight/model_00003.pt"}}
    straight, cut = (tmp_path / "exp" / name for name in ("straight", "cut"))

    codes = [
        together(2, "--config", str(tiny(run.name, **compiled, **sections))).returncode
        for run, sections in ((straight, {}), (cut, from_3))
    ]

    assert codes == [0, 0]
    assert [event["used"]["compile_mode"] for run in (straight, cut) for event in events_of(run, "start")] == [
        "default"
    ] * 2
    assert "compile_failed" not in {event["code"] for run in (straight, cut) for event in events_of(run, "warning")}
    assert series_of(cut) == {step: series_of(straight)[step] for step in (4, 5, 6)}


def where_the_second_differs(file: Path, shell: str) -> subprocess.CompletedProcess[str]:
    """Two processes, the second of them after a line of shell."""
    command = shlex.join([sys.executable, "-m", "model_core.train", "--config", str(file)])
    line = f'test "$RANK" = 0 || {shell}; exec {command}'
    (file.parent / "differing.py").write_text(f"import os\nos.execvp('sh', ['sh', '-c', {line!r}])\n")
    path = os.pathsep.join((str(REPOSITORY), str(file.parent)))
    return subprocess.run(
        [sys.executable, *LAUNCH, "2", "--", "differing"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_only_the_first_process_writes(tiny: Tiny, tmp_path: Path) -> None:
    done = where_the_second_differs(tiny("tiny", **FOR_TWO), "ulimit -f 1")  # no file of it may pass a block
    assert done.returncode == 0
    assert (tmp_path / "exp" / "tiny" / "events.jsonl").stat().st_size > 2048
    assert len(events_of(tmp_path / "exp" / "tiny", "step")) == 6


@pytest.mark.slow
def test_a_compiler_that_fails_at_one_process_alone_is_reported_by_that_process(tiny: Tiny, tmp_path: Path) -> None:
    file, run = tiny("tiny", execution={"use_compile": True}, **FOR_TWO), tmp_path / "exp" / "tiny"
    no_compiler = f"export CXX=/bin/false TORCHINDUCTOR_CACHE_DIR={tmp_path / 'cache'}"
    done = where_the_second_differs(file, no_compiler)
    assert (done.returncode, len(events_of(run, "step"))) == (0, 6), done.stderr
    assert done.stderr.count("warning rank=1 code=compile_failed") == 1
    assert "compile_failed" not in {event["code"] for event in events_of(run, "warning")}


@pytest.mark.slow
def test_processes_whose_launcher_was_killed_save_and_leave(tiny: Tiny, tmp_path: Path) -> None:
    endless = {**FOR_TWO, "training": {**FOR_TWO["training"], "max_steps": 100_000}}
    run = tmp_path / "exp" / "tiny"
    command = [sys.executable, *LAUNCH, "2", "--", "model_core.train", "--config", str(tiny("tiny", **endless))]
    launcher = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL)
    eventually(lambda: list(run.glob("model_*.pt")), 200)
    ranks = psutil.Process(launcher.pid).children()

    launcher.kill()
    launcher.wait()

    assert staying(ranks) == []
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped"
    assert outcome["reason"] in {"launcher gone", "a stop of another process"}  # either may notice it first
    assert events_of(run, "checkpoint")[-1]["step"] == events_of(run, "step")[-1]["step"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices are visible")
def test_two_gpus_make_the_run_that_one_makes(tiny: Tiny, tmp_path: Path) -> None:
    one, two = (tmp_path / "exp" / name for name in ("one", "two"))
    on_gpu = {**FOR_TWO, "device": {"device": "cuda", "dtype": "float32", "tf32": False}}
    assert main(["--config", str(tiny("one", **on_gpu)), "--gpu", "0"]) == 0
    assert together(2, "--config", str(tiny("two", **on_gpu))).returncode == 0
    assert series_of(two) == pytest.approx(series_of(one), rel=1e-5)
