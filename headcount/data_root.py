"""The data root, held by one process at a time, and what keeps one from starting there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from model_core.errors import ModelCoreError


class CannotStart(ModelCoreError):
    """What keeps the service from starting, and what to do about it."""


class InUse(CannotStart):
    """Another process holds the data root."""

    def __init__(self, data: Path, holder: str) -> None:
        super().__init__(f"data directory {data} is in use by another headcount up (process {holder})")


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Hold a data root, which is made if missing; the kernel lets go when the process ends.

    Raises:
        InUse: Another process holds it.
        CannotStart: It cannot be written to, or the platform has no such locks.
    """
    if os.name == "nt":
        raise CannotStart("headcount up needs Linux or macOS; on Windows use WSL2 or Docker")
    import fcntl

    try:
        data.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (data / "up.lock").open("a+")
    except OSError as error:
        raise CannotStart(f"cannot use data directory {data}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InUse(data, lock.read().strip() or "unknown") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
