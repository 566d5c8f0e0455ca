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
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from model_core.errors import DiskFull
from model_core.storage.files import now

log = logging.getLogger(__name__)

Event = dict[str, Any]

_BLOCK = 1 << 18  # bytes that are parsed together


class EventWriter:
    """Appends the events of one attempt; first it cuts off an incomplete last line that a crash left.

    Args:
        path: The file.
        attempt: Whose events these are.
        seq_after: In a new file, the number before the first.
    """

    def __init__(self, path: Path, attempt: int, *, seq_after: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._path, self._attempt = path, attempt
        self._lock = threading.Lock()
        _cut_torn_line(self._file.fileno(), path)
        last = last_event(path)
        self._seq = last["seq"] if last else seq_after

    def append(self, type: str, **fields: Any) -> Event:  # noqa: A002 - the name on disk
        """Write one event.

        Args:
            type: Type of the event.
            fields: Further fields; floats that are not finite become strings.

        Returns:
            The event as written.

        Raises:
            DiskFull: No space is left.
        """
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
    """Replace floats that JSON cannot represent by their names.

    Args:
        value: A JSON value; containers are copied.

    Returns:
        The value without NaN and infinities.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class EventReader:
    """Reads a growing file; each call returns the complete lines that are new.

    Args:
        path: The event file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read_new(self) -> list[Event]:
        """Read the events written since the last call; an incomplete line waits for the next call.

        A line that is no event, which only a failing disk or a foreign program can have left, is passed over.

        Returns:
            The new events in order.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        events = _parse(complete.splitlines(keepends=True), self._path, self._offset)
        self._offset += len(complete)
        return events


def read_events(path: Path, after: int = 0, *, types: Collection[str] | None = None) -> Iterator[Event]:
    """Read every complete event with a `seq` above `after`.

    Args:
        path: The file; a line that is no event is passed over.
        after: The last number that is known.
        types: Only these; most of the others are not even parsed.

    Yields:
        Events in order; none if there is no file.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    wanted = _mentions(types) if types is not None else None
    with file:
        file.seek(offset := _offset_after(file, after))
        for lines in _blocks(file):
            for event in _parse(lines, path, offset, wanted):
                if event["seq"] > after and (types is None or event.get("type") in types):
                    yield event
            offset += sum(map(len, lines))


def last_event(path: Path) -> Event | None:
    """Read the last complete event from the end of the file.

    Args:
        path: The event file.

    Returns:
        The event; None if there is none.
    """
    if not path.exists():
        return None
    size, block = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        while True:
            start = max(0, size - block)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
            whole = reversed(lines if start == 0 else lines[1:])
            event = next((event for line in whole if (event := _event(line)) is not None), None)
            if event is not None or start == 0:
                return event
            block *= 4


def series(events: Iterable[Event], type: str, field: str) -> dict[int, Any]:  # noqa: A002 - the name on disk
    """Collect a field of the events by step; each step has the value of the latest attempt.

    Args:
        events: Events in the order of the file.
        type: Type of the events.
        field: Name of the field.

    Returns:
        Values by step, in the order of steps.
    """
    values: dict[int, Any] = {}
    for event in events:  # attempts follow each other in the file, so a later line is a later attempt
        if event["type"] == type and field in event:
            values[event["step"]] = event[field]
    return dict(sorted(values.items()))


def _blocks(file: BinaryIO) -> Iterator[list[bytes]]:
    """Complete lines, many at a time, up to one that is still being written."""
    is_whole = True
    while is_whole and (lines := file.readlines(_BLOCK)):
        is_whole = lines[-1].endswith(b"\n")
        yield lines if is_whole else lines[:-1]


def _mentions(types: Collection[str]) -> re.Pattern[bytes]:
    """What a line of one of these types must contain: a quote inside a string would stand behind a backslash."""
    names = "|".join(map(re.escape, types))
    return re.compile(rf'"type":\s*"(?:{names})"'.encode())


def _parse(lines: Sequence[bytes], path: Path, offset: int, wanted: re.Pattern[bytes] | None = None) -> list[Event]:
    """Parse complete lines; those that are no events, or in which `wanted` is not found, are left out."""
    shown = lines if wanted is None else [line for line in lines if wanted.search(line)]
    try:
        events: list[Any] = json.loads(b"[%b]" % b",".join(shown))  # in half the time of one by one
    except (ValueError, RecursionError):
        events = []
    if len(events) == len(shown) and all(map(_is_event, events)):
        return events
    return list(_parse_each(lines, path, offset, wanted))


def _parse_each(lines: Sequence[bytes], path: Path, offset: int, wanted: re.Pattern[bytes] | None) -> Iterator[Event]:
    for line in lines:
        if wanted is None or wanted.search(line):
            event = _event(line)
            if event is not None:
                yield event
            elif line.strip():
                log.warning("line passed over path=%s offset=%d begins=%r", path, offset, line[:40])
        offset += len(line)


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if _is_event(event) else None


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("seq"), int)


def _offset_after(file: BinaryIO, after: int) -> int:
    """Where to begin to read: at most a block before the first higher number. Numbers grow, so halving finds it."""
    low, high = 0, file.seek(0, os.SEEK_END) if after > 0 else 0
    while high - low > _BLOCK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()  # the rest of a line
        begin, line = file.tell(), file.readline()
        event = _event(line) if line.endswith(b"\n") else None
        if event is not None and event["seq"] <= after:
            low = begin
        else:
            high = middle
    return low


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
