"""Documents of a text file.

Blank lines, or lines that hold only ``<|endoftext|>``, stand between documents; a file that has neither holds one
document a line. White space around a document is dropped, and line ends become newlines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from model_core.errors import InvalidData

_SEPARATORS = frozenset({"", "<|endoftext|>"})


def read_text(path: Path) -> Iterator[str]:
    """Documents of a text file.

    Raises:
        InvalidData: Naming the line that is not text.
    """
    by_line = not _has_separators(path)
    lines: list[str] = []
    for line in _lines(path):
        separates = line.strip() in _SEPARATORS
        if not separates:
            lines.append(line)
        if lines and (separates or by_line):
            yield "\n".join(lines).strip()
            lines = []
    if lines:
        yield "\n".join(lines).strip()


def _has_separators(path: Path) -> bool:
    """Whether anything stands between two lines of text."""
    seen_text = seen_separator = False
    for line in _lines(path):
        if line.strip() in _SEPARATORS:
            seen_separator = seen_text
        elif seen_separator:
            return True
        else:
            seen_text = True
    return False


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise InvalidData(f"{path}, line {number}: a zero byte, so this is a binary file; give UTF-8 text")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
                raise InvalidData(f"{path}, line {number}: not UTF-8 ({byte}); convert the file to UTF-8") from None
            yield line.rstrip("\r\n")
