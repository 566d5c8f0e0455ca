"""What a client accepts, and what it has already: RFC 9110, sections 12 and 13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.errors import NotAcceptable


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


def has_already(if_none_match: str | None, etag: str) -> bool:
    """Whether the client holds this very representation."""
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given


def tags_of(if_match: str | None) -> list[str] | None:
    """What stands between the quotes of each strong tag in If-Match: nothing else can match there.

    Returns:
        The tags; None: anything matches.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = [tag.strip() for tag in if_match.split(",")]
    return [tag[1:-1] for tag in given if len(tag) > 1 and tag[0] == tag[-1] == '"']
