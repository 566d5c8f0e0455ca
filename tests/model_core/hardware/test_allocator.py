"""A process without the settings of the C allocator re-executes itself with them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_core.hardware.allocator import SETTINGS
from tests.polling import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc heeds them")
PROGRAM = """
import json, os, sys
from model_core.hardware.allocator import reexec_with_malloc_env
print("begun", file=sys.stderr, flush=True)
reexec_with_malloc_env()
seen = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.utf8_mode, sys.stdin.read(), seen]))
sys.exit(75)
"""
UNSET = {name: value for name, value in os.environ.items() if name not in SETTINGS}


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
    assert (seen, process.returncode, beginnings) == (dict(SETTINGS), 75, 2)


def test_one_that_has_them_does_not(tmp_path: Path) -> None:
    assert run(tmp_path, {**UNSET, **SETTINGS})[2] == 1


def test_what_a_person_has_set_stays(tmp_path: Path) -> None:
    _, printed, _ = run(tmp_path, {**UNSET, "MALLOC_TOP_PAD_": "4096"})
    assert json.loads(printed)[4] == {**SETTINGS, "MALLOC_TOP_PAD_": "4096"}


def test_a_training_started_by_hand_has_them(tiny: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "model_core.train", "--config", str(tiny(training={"max_steps": 10_000}))]
    process = subprocess.Popen(command, env=UNSET, stderr=subprocess.DEVNULL)
    environment = Path(f"/proc/{process.pid}/environ")
    eventually(lambda: b"MALLOC_TRIM_THRESHOLD_" in environment.read_bytes(), 30)
    seen = environment.read_bytes()
    process.kill()
    process.wait()
    assert all(f"{name}={value}".encode() in seen.split(b"\0") for name, value in SETTINGS.items())
