"""events.jsonl: the append-only story of a run, one JSON object a line.

Lines are numbered by `seq` and tagged with the `attempt` that wrote them. Nothing is ever rewritten: a resumed
attempt may tell a step again, and a series takes each step from the latest attempt. Floats are written so that
they read back bit for bit; those that are not finite become the strings ``nan``, ``inf`` and ``-inf``.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model_core.errors import DiskFull
from model_core.records.files import now

log = logging.getLogger(__name__)

Event = dict[str, Any]


class EventWriter:
    """Appends events of one attempt; a torn last line, left by a crash, is cut off first."""

    def __init__(self, path: Path, attempt: int, *, seq_after: int = 0) -> None:
        """Open the file, or make it.

        Args:
            path: The file.
            attempt: Whose events these are.
            seq_after: In a new file, the number before the first.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._path, self._attempt = path, attempt
        self._lock = threading.Lock()
        _cut_torn_line(self._file.fileno(), path)
        last = last_event(path)
        self._seq = last["seq"] if last else seq_after

    def append(self, type: str, **fields: Any) -> Event:  # noqa: A002 - the name on disk
        """Write one event and return it as written."""
        with self._lock:
            self._seq += 1
            event = {"seq": self._seq, "time": now(), "attempt": self._attempt, "type": type, **finite(fields)}
            try:
                self._file.write(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise DiskFull(self._path) from None
                raise
        return event

    def close(self) -> None:
        """Put everything on disk and close the file."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()


def finite(value: Any) -> Any:
    """Replace floats that JSON cannot hold by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class EventReader:
    """Reads a growing file: each call returns the complete lines that are new."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read_new(self) -> list[Event]:
        """Events written since the last call; a line still being written waits for the next.

        A line that is no event, which only a failing disk or a foreign program can have left, is passed over.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [event for line in complete.split(b"\n") if (event := _event(line, self._path)) is not None]


def read_events(path: Path, after: int = 0) -> Iterator[Event]:
    """Every complete event with a `seq` above `after`, in order; none if there is no file."""
    for event in EventReader(path).read_new():
        if event["seq"] > after:
            yield event


def last_event(path: Path) -> Event | None:
    """The last complete event, read from the end of the file."""
    if not path.exists():
        return None
    size, block = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        while True:
            start = max(0, size - block)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
            whole = reversed(lines if start == 0 else lines[1:])
            event = next((event for line in whole if (event := _event(line, path)) is not None), None)
            if event is not None or start == 0:
                return event
            block *= 4


def _event(line: bytes, path: Path) -> Event | None:
    if not line:
        return None
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and isinstance(event.get("seq"), int):
        return event
    log.warning("line passed over path=%s begins=%r", path, line[:40])
    return None


def series(events: Iterable[Event], type: str, field: str) -> dict[int, Any]:  # noqa: A002 - the name on disk
    """A value by step, each step from the latest attempt that reached it."""
    values: dict[int, Any] = {}
    for event in events:  # attempts follow each other in the file, so a later line is a later attempt
        if event["type"] == type and field in event:
            values[event["step"]] = event[field]
    return dict(sorted(values.items()))


def _cut_torn_line(descriptor: int, path: Path) -> None:
    data_end = path.stat().st_size
    with path.open("rb") as file:
        position = data_end
        while position > 0:
            start = max(0, position - 4096)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                os.ftruncate(descriptor, start + newline + 1)
                return
            position = start
    os.ftruncate(descriptor, 0)
