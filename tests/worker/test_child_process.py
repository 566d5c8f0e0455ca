"""A job's process: environment, output, signals and its group."""

import subprocess
import sys

import psutil
import pytest

from model_core.data.sources.hub_access import HubBadToken, token_from
from tests.polling import eventually
from worker.child_process import Child, environment

LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_child_gets_only_what_is_listed():
    passed = environment({"PATH": "/bin", "HF_TOKEN": "t", "AWS_SECRET": "s"}, (2, 3), threads=1)
    assert (passed["PATH"], passed["HF_TOKEN"], passed["CUDA_VISIBLE_DEVICES"]) == ("/bin", "t", "2,3")
    assert "AWS_SECRET" not in passed
    assert "HF_TOKEN" not in environment({"PATH": "/bin"}, (), threads=1)
    assert environment({}, (), threads=1)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("given", "threads", "spins", "policy"),
    [
        ({}, "4", "10000", None),
        ({"OMP_NUM_THREADS": "3"}, "3", "10000", None),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "4", None, "PASSIVE"),
        ({"GOMP_SPINCOUNT": "7"}, "4", "7", None),
    ],
    ids=["unset", "threads", "policy", "spins"],
)
def test_a_child_gets_its_threads_and_a_bound_for_their_spinning(given, threads, spins, policy):
    passed = environment(given, (), threads=4)
    found = tuple(passed.get(name) for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    assert found == (threads, spins, policy)


@pytest.mark.parametrize(("token", "passed"), [(" hf_a\n", "hf_a"), ("hf_a\nb", None), ("hf_ä", None), ("\n", None)])
def test_a_token_that_no_header_can_hold_is_not_handed_on(token: str, passed: str | None, caplog):
    handed_on = environment({"HF_TOKEN": token}, (), threads=1)
    assert handed_on.get("HF_TOKEN") == passed
    assert "hf_" not in caplog.text


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_a b", "hf_ä"])
def test_a_child_knows_that_its_token_was_refused_and_not_the_token(token: str):
    handed_on = environment({"HF_TOKEN": token}, (), threads=1)
    with pytest.raises(HubBadToken, match="HF_TOKEN"):
        token_from(handed_on).checked()
    assert "hf_" not in repr(handed_on)


def test_the_last_line_is_reported_without_the_token(tmp_path):
    command = [sys.executable, "-c", "import os; print('bad header', os.environ['HF_TOKEN'])"]
    env = environment({"HF_TOKEN": "hf_canary", "PATH": "/bin"}, (), threads=1)
    child = Child(command, directory=tmp_path, log=tmp_path / "child.log", env=env)
    eventually(lambda: child.exit_code() is not None)
    assert child.last_line() == "bad header [HF_TOKEN]"
    child.kill()


def test_allocator_keeps_freed_blocks():
    script = "import numpy, resource; [numpy.ones(2**23) for _ in range(6)]; print(resource.getrusage(0).ru_minflt)"
    env = environment({"PATH": "/bin"}, (), threads=1) | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    faults = [
        int(subprocess.run([sys.executable, "-c", script], env=e, capture_output=True, check=True).stdout)
        for e in (env, {key: value for key, value in env.items() if not key.startswith("MALLOC")})
    ]
    assert faults[0] < faults[1]


def test_kill_ends_ranks_in_sessions_of_their_own(tmp_path):
    log = tmp_path / "child.log"
    child = Child(
        [sys.executable, "-u", "-c", LAUNCHER], directory=tmp_path, log=log, env=environment({}, (), threads=1)
    )
    eventually(lambda: log.read_text().strip())
    rank = psutil.Process(int(log.read_text()))

    code = child.kill()

    rank.wait(timeout=60)
    assert code < 0
    assert not psutil.pid_exists(child.pid)
    assert child.kill() == code


@pytest.fixture
def start(tmp_path):
    """Start a child that runs some Python."""
    children = []

    def run(script):
        log = tmp_path / "child.log"
        command = [sys.executable, "-u", "-c", script]
        children.append(Child(command, directory=tmp_path, log=log, env=environment({}, (), threads=1)))
        return children[-1]

    yield run
    for child in children:
        child.kill()


def test_last_line_is_not_that_of_a_child_before(start):
    first = start("print('error: no')")
    eventually(lambda: first.exit_code() is not None)
    second = start("")
    eventually(lambda: second.exit_code() is not None)
    assert (first.last_line(), second.last_line()) == ("error: no", "")


def test_child_that_does_not_know_the_signal_survives_a_look_at_its_stacks(start):
    child = start("print('ready'); import time; time.sleep(60)")
    eventually(lambda: child.last_line() == "ready")
    child.dump_stacks()
    assert child.exit_code() is None


def test_stacks_of_what_a_child_started_are_written_too(start):
    rank = (
        "import time; from model_core.entrypoint import ShutdownSignal;"
        "ShutdownSignal().listen(stdin=False); print('up'); time.sleep(9)"
    )
    child = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}], start_new_session=True)")
    eventually(lambda: child.last_line() == "up")
    child.dump_stacks()
    assert "<module>" in child.last_line()
