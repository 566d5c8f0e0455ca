"""Parts of a representation: RFC 9110, section 14, for one range of bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model_core.errors import ModelCoreError

_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 18  # no file is longer, and nobody may keep us busy with thousands of digits


class RangeNotSatisfiable(ModelCoreError):
    """A range that begins behind the end."""

    code = "range_not_satisfiable"

    def __init__(self, wanted: str, size: int) -> None:
        super().__init__(f"Range {wanted[:100]!r} begins behind the end: there are {size:,} bytes")
        self.headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}


@dataclass(frozen=True)
class Part:
    """Bytes from `begin` to before `end` of `size`."""

    begin: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """As the header says it: both ends are included."""
        return f"bytes {self.begin}-{self.end - 1}/{self.size}"


def part_of(wanted: str | None, size: int) -> Part | None:
    """Read a Range header.

    Args:
        wanted: The header.
        size: Bytes of the whole.

    Returns:
        The part; None where the whole is to be served: without a range, with several, or with one that is malformed.

    Raises:
        RangeNotSatisfiable: It begins behind the end.
    """
    found = _ONE_RANGE.fullmatch(wanted or "")
    if found is None or wanted is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        length = _number(found[2])
        if length == 0:
            raise RangeNotSatisfiable(wanted, size)
        return Part(max(0, size - length), size, size) if size else None  # no header can say where nothing lies
    first, last = _number(found[1]), _number(found[2]) if found[2] else size
    if last < first and found[2]:
        return None
    if first >= size:
        raise RangeNotSatisfiable(wanted, size)
    return Part(first, min(last + 1, size), size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
