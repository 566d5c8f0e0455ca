"""How a process learns that it should save and leave: a signal, or its supervisor's end of a pipe closing.

Torch-free, so that the handlers stand before the slow imports. Nothing here takes a lock: a handler may interrupt
another one, and would wait for ever for what that one holds. One more signal, SIGUSR1, asks where the process is.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from types import FrameType

from model_core.errors import Stopped

_STDERR = 2  # the descriptor: sys.stderr may be something that a signal handler cannot write to
_PARENT_S = 0.5


class StopRequest:
    """True once somebody asked the process to stop.

    Attributes:
        reason: What asked first; None: nobody did.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> bool:
        """Whether somebody asked."""
        return self.reason is not None

    def listen(self, *, stdin: bool, parent: bool = False) -> None:
        """Heed SIGTERM and SIGINT; SIGUSR1 writes the stacks of all threads to stderr, whatever hangs.

        Args:
            stdin: Heed the end of standard input too: it is a pipe whose other end the supervisor holds, so it
                closes when the supervisor dies, in whatever way.
            parent: Heed the end of the parent: the launcher of several processes that train together.
        """
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if stdin:
            threading.Thread(target=self._watch, args=(0,), name="supervisor-watch", daemon=True).start()
        if parent:
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), name="parent-watch", daemon=True).start()

    def check(self) -> None:
        """Go on, unless somebody asked.

        Raises:
            Stopped: Somebody did.
        """
        if self.reason is not None:
            raise Stopped(self.reason)

    def request(self, reason: str) -> None:
        """Ask the process to stop; only the first reason is kept."""
        if self.reason is None:
            self.reason = reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    def _watch(self, descriptor: int) -> None:
        while os.read(descriptor, 4096):
            pass
        self.request("supervisor gone")

    def _watch_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_S)
        self.request("launcher gone")
