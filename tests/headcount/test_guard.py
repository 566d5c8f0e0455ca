"""The guard ends every process of a group when its parent is gone."""

import subprocess
import sys
import textwrap

import psutil

from headcount import guard
from tests.polling import eventually
from tests.process import is_over

STUBBORN = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    far = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(far.pid, flush=True)
    time.sleep(600)
"""


def test_a_group_that_must_be_killed_takes_its_far_children_along() -> None:
    command = [sys.executable, "-c", textwrap.dedent(STUBBORN)]
    group = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert group.stdout is not None
    far = psutil.Process(int(group.stdout.readline()))
    watch = subprocess.Popen([sys.executable, "-I", "-S", guard.__file__, "watch", "0.3"], stdin=subprocess.PIPE)
    watch.communicate(f"+{group.pid}\n".encode(), timeout=20)
    group.communicate(timeout=60)
    eventually(lambda: is_over(far))
