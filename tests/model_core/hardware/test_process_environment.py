"""A process without the variables of C library and OpenMP re-executes itself with them; what a person has set stays."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_core.hardware.process_environment import (
    ALLOCATOR,
    OPENMP,
    requested_threads,
    run_in_new_thread,
    spin_variables,
    startup_variables,
)
from tests.model_core.event_log import events_of, series_of
from tests.polling import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc heeds them")
PROGRAM = """
import json, os, sys
from model_core.hardware.process_environment import reexec_with_startup_variables
print("begun", file=sys.stderr, flush=True)
reexec_with_startup_variables()
seen = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GOMP_"))}
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.utf8_mode, sys.stdin.read(), seen]))
sys.exit(75)
"""
SERVER = """
import ctypes, os, re, sys, threading
from model_core.hardware.process_environment import limit_arenas, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

limit_arenas(os.environ)
barrier = threading.Barrier(9)
def work():
    blocks = [bytearray(50_000) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
barrier.wait()
[thread.join() for thread in threads]
blocks = [bytearray(50_000) for _ in range(1000)]
del blocks[:-1]  # the last one holds the end of the heap
before = resident()
return_freed_memory()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
heaps = len(re.findall("<heap nr", open(sys.argv[1]).read()))
print(heaps, before - resident())
"""
UNSET = {name: value for name, value in os.environ.items() if name not in {*ALLOCATOR, *OPENMP}}
VARIABLES = startup_variables({})


def run(tmp_path: Path, environment: dict[str, str]) -> tuple[subprocess.Popen, str, int]:
    """Run the program; the process, what it printed, and how often it began."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    command = [sys.executable, "-X", "utf8", str(file), "--set", "a=b c", ""]
    env = {**environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=env, text=True, **pipes)
    printed, errors = process.communicate("what was sent")
    return process, printed, errors.count("begun")


def test_a_process_begins_once_more_with_the_settings_and_is_the_same_otherwise(tmp_path: Path) -> None:
    process, printed, beginnings = run(tmp_path, UNSET)
    pid, arguments, utf8, sent, seen = json.loads(printed)
    assert (pid, arguments, utf8, sent) == (process.pid, ["--set", "a=b c", ""], 1, "what was sent")
    assert (seen, process.returncode, beginnings) == (VARIABLES, 75, 2)


def test_one_that_has_them_does_not(tmp_path: Path) -> None:
    assert run(tmp_path, {**UNSET, **VARIABLES})[2] == 1


def test_what_a_person_has_set_stays(tmp_path: Path) -> None:
    _, printed, _ = run(tmp_path, {**UNSET, "MALLOC_TOP_PAD_": "4096", "GOMP_SPINCOUNT": "7"})
    assert json.loads(printed)[4] == {**ALLOCATOR, "MALLOC_TOP_PAD_": "4096", "GOMP_SPINCOUNT": "7"}


@pytest.mark.parametrize(
    ("given", "heaps"), [({}, range(1, 3)), ({"MALLOC_ARENA_MAX": "5"}, range(3, 6))], ids=["unset", "five"]
)
def test_a_server_has_few_heaps_unless_a_person_has_decided_and_returns_what_was_freed(
    tmp_path: Path, given: dict[str, str], heaps: range
) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "heaps.xml")]
    env = {**UNSET, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    counted, returned = map(int, subprocess.run(command, env=env, capture_output=True, check=True).stdout.split())

    assert counted in heaps
    assert returned > 40_000_000


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT"}),
        ({"GOMP_SPINCOUNT": ""}, {"GOMP_SPINCOUNT"}),
        ({"OMP_NUM_THREADS": "2"}, {"GOMP_SPINCOUNT"}),
        ({"GOMP_SPINCOUNT": "infinity"}, set()),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, set()),
        ({"OMP_WAIT_POLICY": "passive"}, set()),
    ],
    ids=["unset", "empty", "threads", "spins", "active", "passive"],
)
def test_spinning_is_bounded_unless_a_person_has_decided(given: dict[str, str], added: set[str]) -> None:
    assert spin_variables(given).keys() == added


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": " 4,2"}, 4),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "-2"}, None),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, None),  # torchrun's own choice
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "none"}, 2),
    ],
    ids=["unset", "three", "one", "nested", "zero", "text", "negative", "torchrun", "torchrun-two"],
)
def test_the_threads_that_an_environment_asks_for(environment: dict[str, str], threads: int | None) -> None:
    assert requested_threads(environment) == threads


def test_threads_of_operations_end_with_the_thread_that_ran_them() -> None:
    before = _thread_count()

    result, during = run_in_new_thread(_multiply)

    assert result == 256
    assert during >= before + torch.get_num_threads()
    assert eventually(lambda: _thread_count() == before)


def _thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _multiply() -> tuple[float, int]:
    x = torch.ones(256, 256)
    return float((x @ x)[0, 0]), _thread_count()


def test_a_training_started_by_hand_has_them(tiny: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "model_core.train", "--config", str(tiny(training={"max_steps": 10_000}))]
    process = subprocess.Popen(command, env=UNSET, stderr=subprocess.DEVNULL)
    environment = Path(f"/proc/{process.pid}/environ")
    eventually(lambda: b"MALLOC_TRIM_THRESHOLD_" in environment.read_bytes(), 30)
    seen = environment.read_bytes()
    process.kill()
    process.wait()
    assert all(f"{name}={value}".encode() in seen.split(b"\0") for name, value in VARIABLES.items())


@pytest.mark.slow
def test_losses_do_not_depend_on_how_threads_wait(tiny: Callable[..., Path], tmp_path: Path) -> None:
    losses = {}
    for name, waiting in {"bounded": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}}.items():
        command = [sys.executable, "-m", "model_core.train", "--config", str(tiny(name, device={"threads": 2}))]
        subprocess.run(command, env={**UNSET, **waiting}, stderr=subprocess.DEVNULL, check=True)
        (start,) = events_of(tmp_path / "exp" / name, "start")
        assert (start["used"]["threads"], "GOMP_SPINCOUNT" in start["environment"]["openmp"]) == (2, name == "bounded")
        losses[name] = series_of(tmp_path / "exp" / name)
    assert len(losses["bounded"]) == 20
    assert losses["bounded"] == losses["sleeping"]
