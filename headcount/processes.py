"""Child processes of the launcher: started, restarted with back-off when they die, stopped together.

Start them from the main thread: the kernel's parent-death signal belongs to the thread that started the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from headcount import guard

_FIRST_DELAY_S, _LONGEST_DELAY_S, _HEALTHY_S = 0.5, 30.0, 60.0
_LOG_LIMIT_BYTES = 20 << 20


@dataclass(frozen=True)
class Program:
    """Description of a child process.

    Attributes:
        name: Name in messages and of the log file.
        argv: Command line; the first entry is an absolute path.
        environment: The whole environment.
        log: File to which the output is appended.
        cwd: Working directory; None for the launcher's.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    cwd: Path | None = None

    def last_line(self) -> str:
        """Read the last line of the log, for an error message.

        Returns:
            The line; "nothing" if the log is empty.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return text.strip().rpartition("\n")[2] or "nothing"


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    started: float
    delay_s: float = _FIRST_DELAY_S
    deaths: int = 0
    again_at: float | None = field(default=None)


class ProcessGroup:
    """All children of one launcher, and the watch process that ends them if the launcher is killed.

    Args:
        echo: Prints a message for the person at the terminal.
    """

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._children: dict[str, _Child] = {}
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running children, by name."""
        return {name: child.process.pid for name, child in self._children.items() if child.process.poll() is None}

    @property
    def programs(self) -> dict[str, Program]:
        """Programs of the started children, by name."""
        return {name: child.program for name, child in self._children.items()}

    def start(self, program: Program) -> None:
        """Start a child in its own session.

        Args:
            program: What to start.
        """
        self._children[program.name] = _Child(program, self._spawn(program), time.monotonic())

    def deaths(self, name: str) -> int:
        """Count how often a child ended by itself.

        Args:
            name: Name of the child.

        Returns:
            The count.
        """
        return self._children[name].deaths

    def tend(self) -> None:
        """Check every child once: record those that ended, restart those whose delay has passed."""
        for name, child in self._children.items():
            code = child.process.poll()
            if code is None:
                continue
            if child.again_at is None:
                self._note_death(name, child, code)
            elif time.monotonic() >= child.again_at:
                child.process, child.started = self._spawn(child.program), time.monotonic()
                child.again_at = None

    def _note_death(self, name: str, child: _Child, code: int) -> None:
        self._notify_watch("-", child.process.pid)
        if time.monotonic() - child.started > _HEALTHY_S:
            child.delay_s = _FIRST_DELAY_S
        child.deaths += 1
        child.again_at = time.monotonic() + child.delay_s
        self._echo(f"{name} ended with {_cause(code)}; again in {child.delay_s:g} s, see {child.program.log}")
        child.delay_s = min(child.delay_s * 2, _LONGEST_DELAY_S)

    def stop(self, names: Iterable[str], grace_s: float, hurried: Callable[[], bool]) -> None:
        """Send SIGTERM to children, wait, and kill those that are left.

        Args:
            names: Names of the children; those that never started are skipped.
            grace_s: Seconds to wait for all of them together.
            hurried: Returns True if the person asked a second time.
        """
        group = [self._children.pop(name) for name in tuple(names) if name in self._children]
        for child in group:
            _signal_group(child.process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(c.process.poll() is None for c in group) and time.monotonic() < deadline and not hurried():
            time.sleep(0.05)
        for child in group:
            if child.process.poll() is None:
                self._echo(f"{child.program.name} did not stop in time and was killed")
            guard.kill([child.process.pid])  # also what it started
            child.process.wait()
            self._notify_watch("-", child.process.pid)

    def close(self) -> None:
        """End the watch process, after every child has been stopped."""
        if self._watch is not None and self._watch.stdin is not None:
            with contextlib.suppress(OSError):
                self._watch.stdin.close()
            self._watch.wait()
            self._watch = None

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        guarded = [sys.executable, "-I", "-S", guard.__file__, "run", str(os.getpid()), *program.argv]
        with _open_log(program.log) as log:
            process = subprocess.Popen(
                guarded, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=dict(program.environment), cwd=program.cwd, start_new_session=True,
            )  # fmt: skip
        self._notify_watch("+", process.pid)
        return process

    def _notify_watch(self, sign: str, pid: int) -> None:
        if self._watch is None or self._watch.poll() is not None:
            command = [sys.executable, "-I", "-S", guard.__file__, "watch", str(guard.GRACE_S)]
            self._watch = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        assert self._watch.stdin is not None
        with contextlib.suppress(OSError):
            self._watch.stdin.write(f"{sign}{pid}\n".encode())
            self._watch.stdin.flush()


def _open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".previous.log"))
    return path.open("ab")


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"
