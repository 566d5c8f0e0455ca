"""Append-only event log of a run, events.jsonl: one JSON object per line.

Each event has a sequence number `seq` and the number of the `attempt` that wrote it. Events are never rewritten: a
resumed attempt may report a step again, and a series takes each step from the latest attempt. Floats round-trip
exactly; those that are not finite become the strings ``nan``, ``inf`` and ``-inf``.
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

_LINE_ENDS = "\u0085\u2028\u2029"  # to str.splitlines and some clients; JSON escapes the others itself
_ESCAPED = re.compile(f"[{_LINE_ENDS}\ud800-\udfff]")
_BLOCK_BYTES = 1 << 18  # lines that are parsed together


class EventWriter:
    """Appends the events of one attempt. Opening the file removes an incomplete last line that a crash left.

    Args:
        path: The event file.
        attempt: Number of the attempt.
        seq_after: Sequence number before that of the first event, for a new file.
    """

    def __init__(self, path: Path, attempt: int, *, seq_after: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._path, self._attempt = path, attempt
        self._lock = threading.Lock()
        _truncate_incomplete_line(self._file.fileno(), path)
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
                self._file.write(one_line(event).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise DiskFull(self._path) from None
                raise
        return event

    def close(self) -> None:
        """Flush the file to disk and close it."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()


class EventReader:
    """Reads a growing event file incrementally.

    Args:
        path: The event file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read_new(self) -> list[Event]:
        """Read the events written since the last call; an incomplete line is left for the next call.

        A line that is not an event, which only a failing disk or another program can have written, is skipped.

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
    """Read the complete events whose `seq` is greater than `after`.

    Args:
        path: The event file; a line that is not an event is skipped.
        after: Sequence number of the last event that is not needed.
        types: Types of the events to return, None for all; most lines of other types are not parsed.

    Yields:
        Events in order; none if the file does not exist.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    pattern = _type_pattern(types) if types is not None else None
    with file:
        file.seek(offset := _offset_after(file, after))
        for lines in _read_blocks(file):
            for event in _parse(lines, path, offset, pattern):
                if event["seq"] > after and (types is None or event.get("type") in types):
                    yield event
            offset += sum(map(len, lines))


def last_event(path: Path) -> Event | None:
    """Read the last complete event, searching from the end of the file.

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
            complete = reversed(lines if start == 0 else lines[1:])
            event = next((event for line in complete if (event := _parse_line(line)) is not None), None)
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
    for event in events:  # attempts are consecutive in the file, so a later line is of a later attempt
        if event["type"] == type and field in event:
            values[event["step"]] = event[field]
    return dict(sorted(values.items()))


def one_line(value: Any) -> str:
    """Format a JSON value as a line that no reader cuts in two.

    Args:
        value: JSON value, whose floats are finite.

    Returns:
        JSON text; what some readers take for the end of a line is escaped, and half of a surrogate pair, which has no
        encoding, is replaced by U+FFFD.
    """
    return _ESCAPED.sub(_escape, json.dumps(value, ensure_ascii=False, allow_nan=False))


def ascii_line(value: Any) -> str:
    """Format a JSON value as a line of a stream: in ASCII, so that no reader cuts it in two, whatever it decodes.

    Args:
        value: JSON value, whose floats are finite.

    Returns:
        JSON text; half of a surrogate pair, which has no encoding, is replaced by U+FFFD.
    """
    text = json.dumps(value, allow_nan=False)
    return json.dumps(json.loads(one_line(value))) if "\\ud" in text else text  # a pair, or half of one


def finite(value: Any) -> Any:
    """Replace floats that JSON cannot represent by the strings ``nan``, ``inf`` and ``-inf``.

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


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}" if found[0] in _LINE_ENDS else "\ufffd"


def _read_blocks(file: BinaryIO) -> Iterator[list[bytes]]:
    """Blocks of complete lines; an incomplete last line is left out."""
    is_complete = True
    while is_complete and (lines := file.readlines(_BLOCK_BYTES)):
        is_complete = lines[-1].endswith(b"\n")
        yield lines if is_complete else lines[:-1]


def _type_pattern(types: Collection[str]) -> re.Pattern[bytes]:
    """Pattern that every line of one of these types contains; a quote inside a JSON string is escaped."""
    names = "|".join(map(re.escape, types))
    return re.compile(rf'"type":\s*"(?:{names})"'.encode())


def _parse(lines: Sequence[bytes], path: Path, offset: int, pattern: re.Pattern[bytes] | None = None) -> list[Event]:
    """Parse complete lines; lines that are not events, or that do not contain `pattern`, are skipped."""
    selected = lines if pattern is None else [line for line in lines if pattern.search(line)]
    try:
        events: list[Any] = json.loads(b"[%b]" % b",".join(selected))  # twice as fast as line by line
    except (ValueError, RecursionError):
        events = []
    if len(events) == len(selected) and all(map(_is_event, events)):
        return events
    return list(_parse_each(lines, path, offset, pattern))


def _parse_each(lines: Sequence[bytes], path: Path, offset: int, pattern: re.Pattern[bytes] | None) -> Iterator[Event]:
    for line in lines:
        if pattern is None or pattern.search(line):
            event = _parse_line(line)
            if event is not None:
                yield event
            elif line.strip():
                log.warning("line skipped path=%s offset=%d begins=%r", path, offset, line[:40])
        offset += len(line)


def _parse_line(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if _is_event(event) else None


def _is_event(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("seq"), int)


def _offset_after(file: BinaryIO, after: int) -> int:
    """Offset at most one block before the first event after `after`, by binary search: `seq` grows."""
    low, high = 0, file.seek(0, os.SEEK_END) if after > 0 else 0
    while high - low > _BLOCK_BYTES:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline()  # the rest of a line
        start, line = file.tell(), file.readline()
        event = _parse_line(line) if line.endswith(b"\n") else None
        if event is not None and event["seq"] <= after:
            low = start
        else:
            high = middle
    return low


def _truncate_incomplete_line(descriptor: int, path: Path) -> None:
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
