"""Child processes are restarted, stopped, and never left behind."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headcount.processes import ProcessGroup, Program
from tests.polling import eventually
from tests.process import is_over


def program(tmp_path: Path, code: str, name: str = "child") -> Program:
    return Program(name, (sys.executable, "-c", textwrap.dedent(code)), dict(os.environ), tmp_path / f"{name}.log")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def group(said: list[str]) -> Iterator[ProcessGroup]:
    group = ProcessGroup(said.append)
    yield group
    group.stop(tuple(group.programs), 0, lambda: True)
    group.close()


def test_a_child_that_dies_is_started_again(group: ProcessGroup, said: list[str], tmp_path: Path) -> None:
    group.start(program(tmp_path, "import time; time.sleep(600)"))
    first = group.pids["child"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: group.tend() or group.pids.get("child", first) != first)
    assert group.deaths("child") == 1
    assert "SIGKILL" in said[0]


def test_each_restart_waits_longer(group: ProcessGroup, said: list[str], tmp_path: Path) -> None:
    group.start(program(tmp_path, "print('last words'); raise SystemExit(3)"))
    eventually(lambda: group.tend() or group.deaths("child") >= 2)
    assert ["again in 0.5 s" in said[0], "again in 1 s" in said[1]] == [True, True]
    assert group.programs["child"].last_line() == "last words"


def test_a_child_that_will_not_stop_is_killed(group: ProcessGroup, said: list[str], tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    child = program(tmp_path, code)
    group.start(child)
    eventually(lambda: child.last_line() == "on")
    pid = group.pids["child"]
    group.stop(("child",), 0.3, lambda: False)
    assert not psutil.pid_exists(pid)
    assert said == ["child did not stop in time and was killed"]


def test_a_child_that_is_killed_takes_what_it_started_in_other_sessions(group: ProcessGroup, tmp_path: Path) -> None:
    code = """
        import signal, subprocess, sys, time
        signal.signal(15, signal.SIG_IGN)
        far = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(far.pid, flush=True)
        time.sleep(600)
    """
    child = program(tmp_path, code)
    group.start(child)
    eventually(lambda: child.last_line().isdigit())
    far = psutil.Process(int(child.last_line()))
    group.stop(("child",), 0.3, lambda: False)
    eventually(lambda: is_over(far))


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
        import os, sys, time
        from pathlib import Path
        from headcount.processes import ProcessGroup, Program
        group = ProcessGroup(print)
        group.start(Program("child", (sys.executable, "-c", "import time; time.sleep(600)"), dict(os.environ),
                             Path({str(tmp_path)!r}) / "child.log"))
        print(group.pids["child"], group._watch.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
        parent.wait()
    assert len(pids) == 2
    eventually(lambda: not any(map(psutil.pid_exists, pids)))
