"""Signals that ask a program to stop."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

INTERRUPTED = """
import signal, sys
from model_core.entrypoint import ShutdownSignal

def heard(at):
    stop, lines = ShutdownSignal(), 0
    stop.listen(stdin=False)
    def trace(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == at:
            signal.raise_signal(signal.SIGTERM)
        return trace
    sys.settrace(trace)
    signal.raise_signal(signal.SIGTERM)
    sys.settrace(None)
    assert (stop(), stop.reason) == (True, "SIGTERM")
    return lines

at = 1
while at <= heard(at):
    at += 1
print(at - 1)
"""


def test_a_signal_may_come_anywhere_within_the_handler_of_another() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert told.stderr == ""
    assert int(told.stdout) >= 3  # lines of the handler, each interrupted once
