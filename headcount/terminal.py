"""What the command prints: JSON that keeps every character, and numbers, sizes and times as a person reads them."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # json.dumps escapes the others
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def json_text(value: object, indent: int | None = None) -> str:
    """Format a value as JSON that survives every terminal and every reader of lines.

    Args:
        value: JSON value.
        indent: Spaces a level; None puts it on one line.

    Returns:
        JSON; ASCII only if stdout cannot show more, because a replaced character would be another value.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    is_ascii = not encoding.lower().replace("-", "").startswith("utf")
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def number(value: Any) -> str:
    """Format a number with four significant digits.

    Args:
        value: A number, or the name of one that is not finite.

    Returns:
        The text.
    """
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def size(size_bytes: float) -> str:
    """Format a size.

    Args:
        size_bytes: Number of bytes.

    Returns:
        Such as "12.3 MiB".
    """
    power = 0
    while size_bytes >= 1000 and power < len(_UNITS) - 1:
        size_bytes, power = size_bytes / 1024, power + 1
    return f"{size_bytes:.0f} B" if power == 0 else f"{size_bytes:.1f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Format a duration as h:mm:ss.

    Args:
        seconds: The duration in seconds.

    Returns:
        The text.
    """
    return str(timedelta(seconds=round(seconds)))


def elapsed(start: str | None, end: str | None) -> str:
    """Format the time between two instants.

    Args:
        start: RFC 3339 time.
        end: RFC 3339 time; None for now.

    Returns:
        The duration as h:mm:ss; empty if `start` is None or not a time.
    """
    began, ended = _instant(start), _instant(end) if end else datetime.now(UTC)
    return duration(max(0.0, (ended - began).total_seconds())) if began and ended else ""


def ago(time: str | None) -> str:
    """Say how long ago an instant was.

    Args:
        time: RFC 3339 time.

    Returns:
        Such as "5 min ago"; empty for None, and the text itself if it is not a time.
    """
    instant = _instant(time)
    if instant is None:
        return time or ""
    seconds = max(0, round((datetime.now(UTC) - instant).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def local_time(time: str | None) -> str:
    """Format an instant in the time zone of this machine.

    Args:
        time: RFC 3339 time.

    Returns:
        Such as "2026-11-30 14:02:05"; empty for None, and the text itself if it is not a time.
    """
    instant = _instant(time)
    return (time or "") if instant is None else instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _instant(time: str | None) -> datetime | None:
    try:
        instant = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
