"""The launcher starts ranks, returns the exit code of rank 0, and leaves no process behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from model_core.errors import InvalidParameter
from model_core.launch import LISTENER, DistEnv, dist_env
from tests.polling import eventually

needs_signals = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
REPOSITORY = Path(__file__).parents[2]
HOLD = "import time; time.sleep(60)"
Launch = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start two ranks that run some Python; each knows its RANK and says "up" as a file when it heeds signals."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        head = "import os, pathlib, signal, sys\nfrom model_core.launch import dist_env\nenv = dist_env(os.environ)\n"
        (tmp_path / "rank.py").write_text(f"{head}{script}")
        path = os.pathsep.join((str(REPOSITORY), str(tmp_path)))
        command = [sys.executable, "-m", "model_core.launch", "--processes", "2", "--", "rank"]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def ranks_of(launcher: subprocess.Popen[str], directory: Path) -> list[psutil.Process]:
    """Both ranks, once each has said that it is up."""
    eventually(lambda: len(list(directory.glob("up*"))) == 2)
    return [psutil.Process(int((directory / f"up{rank}").read_text())) for rank in (0, 1)]


UP = "up = pathlib.Path(f'.up{env.rank}')\nup.write_text(str(os.getpid()))\nup.rename(up.name[1:])\n"
LEAVE_75 = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75 if env.is_main else 3))\n"


@needs_signals
def test_the_exit_code_is_that_of_rank_0(launch: Launch) -> None:
    assert launch("sys.exit(0 if env.rank else 76)").wait(60) == 76


@needs_signals
def test_each_rank_gets_its_own_variables_and_rank_0_inherits_the_socket(launch: Launch, tmp_path: Path) -> None:
    told = "import socket\nport = env.listener and socket.socket(fileno=env.listener).getsockname()[1]\n"
    launch(f"{told}pathlib.Path(str(env.rank)).write_text(f'{{env.world_size}} {{port == env.port}}')").wait(60)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 True", "2 False"]


@needs_signals
def test_a_stop_reaches_all_ranks_and_rank_0_says_how_it_ended(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(LEAVE_75 + UP + HOLD)
    ranks_of(launcher, tmp_path)
    launcher.terminate()
    assert launcher.wait(60) == 75


@needs_signals
def test_ranks_end_when_one_is_killed(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(LEAVE_75 + UP + HOLD)
    leader, other = ranks_of(launcher, tmp_path)
    other.kill()
    assert launcher.wait(60) == 75
    assert launcher.stderr is not None
    assert launcher.stderr.read() == "rank 1 was ended by SIGKILL\n"
    assert not leader.is_running()


@needs_signals
def test_a_signal_that_ends_rank_0_shows_in_the_exit_code(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(LEAVE_75 + UP + HOLD)
    ranks_of(launcher, tmp_path)[0].kill()
    assert launcher.wait(60) == 128 + signal.SIGKILL


@needs_signals
def test_ranks_notice_that_their_launcher_was_killed(launch: Launch, tmp_path: Path) -> None:
    imported = "from model_core.entrypoint import ShutdownSignal\n"
    watch = f"{imported}stop = ShutdownSignal()\nstop.listen(stdin=False, parent=True)\n"
    launcher = launch(f"{watch}{UP}import time\nwhile not stop(): time.sleep(0.05)")
    ranks = ranks_of(launcher, tmp_path)
    launcher.kill()
    assert psutil.wait_procs(ranks, timeout=20)[1] == []


@needs_signals
@pytest.mark.parametrize("processes", ["0", "two", "2000"])
def test_a_number_of_processes_that_cannot_be_is_refused(processes: str) -> None:
    command = [sys.executable, "-m", "model_core.launch", "--processes", processes, "rank"]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert f"'{processes}'" in told.stderr


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
OURS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "9", LISTENER: "5"}


@pytest.mark.parametrize(
    ("environment", "env"),
    [
        ({}, DistEnv()),
        ({"WORLD_SIZE": "8"}, DistEnv()),
        (TORCHRUN, DistEnv(rank=3, world_size=4, local_rank=1, local_world=2, launched=True)),
        (OURS, DistEnv(rank=0, world_size=2, local_rank=0, local_world=2, port=9, listener=5, launched=True)),
        ({**OURS, "RANK": "1", "LOCAL_RANK": "1"}, DistEnv(1, 2, 1, 2, port=9, launched=True)),
    ],
)
def test_a_rank_is_read_from_the_variables_of_a_launcher(environment: dict[str, str], env: DistEnv) -> None:
    assert dist_env(environment) == env


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "4"}, "RANK=4.* WORLD_SIZE=4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2.* LOCAL_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "-1"}, "RANK='-1'"),
    ],
)
def test_an_impossible_rank_is_refused_with_its_variables(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        dist_env({**TORCHRUN, **wrong})
