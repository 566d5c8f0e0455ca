import subprocess
import sys
import time

import psutil

from worker.child import Child, environment

LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_child_gets_only_what_is_listed():
    passed = environment({"PATH": "/bin", "HF_TOKEN": "t", "AWS_SECRET": "s", "OMP_NUM_THREADS": "3"}, (2, 3))
    assert (passed["PATH"], passed["HF_TOKEN"], passed["CUDA_VISIBLE_DEVICES"]) == ("/bin", "t", "2,3")
    assert not {"AWS_SECRET", "OMP_NUM_THREADS"} & passed.keys()
    assert "HF_TOKEN" not in environment({"PATH": "/bin"}, ())
    assert environment({}, ())["CUDA_VISIBLE_DEVICES"] == ""


def test_allocator_keeps_freed_blocks():
    script = "import numpy, resource; [numpy.ones(2**23) for _ in range(6)]; print(resource.getrusage(0).ru_minflt)"
    env = environment({"PATH": "/bin"}, ())
    faults = [
        int(subprocess.run([sys.executable, "-c", script], env=e, capture_output=True, check=True).stdout)
        for e in (env, {key: value for key, value in env.items() if not key.startswith("MALLOC")})
    ]
    assert faults[0] < faults[1]


def test_kill_ends_ranks_in_sessions_of_their_own(tmp_path):
    log = tmp_path / "child.log"
    child = Child([sys.executable, "-u", "-c", LAUNCHER], directory=tmp_path, log=log, env=environment({}, ()))
    deadline = time.monotonic() + 10
    while not log.read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.02)
    rank = psutil.Process(int(log.read_text()))

    code = child.kill()

    rank.wait(timeout=5)
    assert code < 0
    assert not psutil.pid_exists(child.pid)
    assert child.kill() == code
