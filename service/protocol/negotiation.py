"""Content negotiation, conditional requests and byte ranges: RFC 9110, sections 12, 13 and 14."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_core.errors import ModelCoreError
from service.protocol.errors import NotAcceptable


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Pick the media type to serve.

    Args:
        accept: The Accept header; None accepts everything.
        offered: What can be served, the preferred one first.

    Raises:
        NotAcceptable: Nothing fits.
    """
    ranges = _ranges(accept or "*/*")
    best = max(offered, key=lambda kind: _quality(kind, ranges))  # the first of equals
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(accept or "", offered)
    return best


def _ranges(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        ranges[name] = _number(weights[0]) if weights else 1.0
    return ranges


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() and text.isascii() else 0.0


def _quality(kind: str, ranges: Mapping[str, float]) -> float:
    """Of the most exact range that fits: how much the client wants it."""
    for name in (kind, kind.split("/")[0] + "/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client holds this very representation."""
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given


def strong_etags(if_match: str | None) -> list[str] | None:
    """What stands between the quotes of each strong tag in If-Match: nothing else can match there.

    Returns:
        The tags; None: anything matches.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = [tag.strip() for tag in if_match.split(",")]
    return [tag[1:-1] for tag in given if len(tag) > 1 and tag[0] == tag[-1] == '"']


_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 18  # no file is longer, and nobody may keep us busy with thousands of digits


class RangeNotSatisfiable(ModelCoreError):
    """A range that begins behind the end."""

    code = "range_not_satisfiable"

    def __init__(self, wanted: str, size: int) -> None:
        super().__init__(f"Range {wanted[:100]!r} begins behind the end: there are {size:,} bytes")
        self.headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `begin` to before `end` of `size`."""

    begin: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """As the header says it: both ends are included."""
        return f"bytes {self.begin}-{self.end - 1}/{self.size}"


def parse_range(wanted: str | None, size: int) -> ByteRange | None:
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
        length = _ranges_number(found[2])
        if length == 0:
            raise RangeNotSatisfiable(wanted, size)
        return ByteRange(max(0, size - length), size, size) if size else None  # no header can say where nothing lies
    first, last = _ranges_number(found[1]), _ranges_number(found[2]) if found[2] else size
    if last < first and found[2]:
        return None
    if first >= size:
        raise RangeNotSatisfiable(wanted, size)
    return ByteRange(first, min(last + 1, size), size)


def _ranges_number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS
