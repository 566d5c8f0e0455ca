"""Ends every child process when `headcount up` ends, however that happens.

`run`: on Linux the kernel signals a child when its parent dies, even by kill -9 (PR_SET_PDEATHSIG); the child then
executes the command. `watch`: a small process reads a pipe from the parent. When the pipe closes it ends every process
group that is still registered, by SIGTERM, then SIGKILL, with their descendants in other sessions. It is the only
protection on macOS. Standard library only: it runs as `python -I -S guard.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
GRACE_S = 120.0  # `up` may take 105 s: a training saves, then Redis


def run(parent: int, command: Sequence[str]) -> None:
    """Replace this process by a command that gets SIGTERM when `parent` dies; the caller gave it its own session.

    Args:
        parent: Process id of the parent.
        command: Command line; the first entry is an absolute path.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)
    os.execv(command[0], list(command))


def watch(pipe: int, grace_s: float = GRACE_S) -> None:
    """Read `+PID` and `-PID` lines until the pipe closes, then end the remaining process groups.

    Args:
        pipe: File descriptor to read from.
        grace_s: Seconds between SIGTERM and SIGKILL.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the parent ends the watch
    groups: dict[int, None] = {}
    with os.fdopen(pipe) as lines:
        for line in lines:
            if line.startswith("+"):
                groups[int(line[1:])] = None
            else:
                groups.pop(int(line[1:]), None)
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _alive(groups) and time.monotonic() < deadline:
        time.sleep(0.2)
    kill(_alive(groups))


def kill(groups: Collection[int]) -> None:
    """Kill process groups and all descendants, also those in other sessions.

    Args:
        groups: Ids of the process groups.
    """
    descendants = _descendants(groups)
    _signal(groups, signal.SIGKILL)
    for pid in descendants:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(groups: Collection[int]) -> set[int]:
    rows = _processes()
    found = {pid for pid, _, group in rows if group in groups}
    while more := {pid for pid, parent, _ in rows if parent in found} - found:
        found |= more
    return found


def _processes() -> list[tuple[int, int, int]]:
    """Id, parent and group of every process."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["/bin/ps", "-A", "-o", "pid=,ppid=,pgid="], capture_output=True, check=False).stdout
        return [(int(pid), int(parent), int(group)) for pid, parent, group in map(bytes.split, listing.splitlines())]
    rows = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()  # a name may hold spaces
            rows.append((int(directory.name), int(fields[1]), int(fields[2])))
    return rows


def _alive(groups: Collection[int]) -> list[int]:
    return [group for group in groups if _signal([group], 0)]


def _signal(groups: Collection[int], number: int) -> bool:
    sent = False
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            sent = True
    return sent


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch(sys.stdin.fileno(), float(sys.argv[2]))
    else:
        run(int(sys.argv[2]), sys.argv[3:])
