"""Content negotiation, conditional requests and byte ranges: RFC 9110, sections 12, 13 and 14."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from model_core.errors import ModelCoreError
from service.protocol.errors import NotAcceptable

_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 18  # enough for any file, and parsing stays cheap


class RangeNotSatisfiable(ModelCoreError):
    """The range begins after the end; the reply has the size in Content-Range."""

    code = "range_not_satisfiable"

    def __init__(self, range_header: str, size: int) -> None:
        super().__init__(f"Range {range_header[:100]!r} begins after the end: there are {size:,} bytes")
        self.headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}


@dataclass(frozen=True)
class ByteRange:
    """A part of a representation.

    Attributes:
        begin: Offset of the first byte.
        end: Offset after the last byte.
        size: Length of the whole representation in bytes.
    """

    begin: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        """Value of Content-Range, which includes both ends."""
        return f"bytes {self.begin}-{self.end - 1}/{self.size}"


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Choose the media type of a reply.

    Args:
        accept: The Accept header; None accepts everything.
        offered: Media types that can be served, the preferred one first.

    Returns:
        The offered type of the highest quality, the first of equals.

    Raises:
        NotAcceptable: The header excludes all of them.
    """
    ranges = _ranges(accept or "*/*")
    best = max(offered, key=lambda kind: _quality(kind, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptable(accept or "", offered)
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Read whether a reply may be packed with gzip (RFC 9110, 12.5.3).

    Args:
        accept_encoding: The Accept-Encoding header; None wants no coding.

    Returns:
        Whether gzip is wanted.
    """
    codings = _ranges(accept_encoding or "identity")
    return codings.get("gzip", codings.get("x-gzip", codings.get("*", 0.0))) > 0


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Compare an ETag with If-None-Match, weakly as RFC 9110 (13.1.2) demands.

    Args:
        if_none_match: The header; None matches nothing.
        etag: ETag of the representation.

    Returns:
        Whether the client has this representation already.
    """
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given


def revalidated(request: Request, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Build a reply of JSON with an ETag of its content, which a client asks for again and again.

    Args:
        request: The request.
        body: The JSON.
        headers: Further headers.

    Returns:
        The reply, or 304 if the client has it already.
    """
    # Weak: a proxy may compress it. Blake2 is fast enough for a list that is asked for each second.
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    all_headers = {"Cache-Control": "no-cache", **(headers or {}), "ETag": f"W/{etag}"}
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=all_headers)
    return Response(body, media_type="application/json", headers=all_headers)


def strong_etags(if_match: str | None) -> list[str] | None:
    """Parse If-Match, which only strong tags can match.

    Args:
        if_match: The header.

    Returns:
        The strong tags without their quotes; None without the header and for `*`, which any ETag matches.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = [tag.strip() for tag in if_match.split(",")]
    return [tag[1:-1] for tag in given if len(tag) > 1 and tag[0] == tag[-1] == '"']


def parse_range(range_header: str | None, size: int) -> ByteRange | None:
    """Parse a Range header.

    Args:
        range_header: The header.
        size: Length of the whole representation in bytes.

    Returns:
        The range; None to serve the whole: without a range, with several ranges, or with a malformed one.

    Raises:
        RangeNotSatisfiable: The range begins after the end.
    """
    found = _ONE_RANGE.fullmatch(range_header or "")
    if found is None or range_header is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        length = _offset(found[2])
        if length == 0:
            raise RangeNotSatisfiable(range_header, size)
        # Content-Range cannot express an empty range
        return ByteRange(max(0, size - length), size, size) if size else None
    first, last = _offset(found[1]), _offset(found[2]) if found[2] else size
    if last < first and found[2]:
        return None
    if first >= size:
        raise RangeNotSatisfiable(range_header, size)
    return ByteRange(first, min(last + 1, size), size)


def _ranges(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        ranges[name] = _weight(weights[0]) if weights else 1.0
    return ranges


def _weight(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() and text.isascii() else 0.0


def _quality(kind: str, ranges: Mapping[str, float]) -> float:
    """Quality of the most specific range that matches."""
    for name in (kind, kind.split("/")[0] + "/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


def _offset(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
