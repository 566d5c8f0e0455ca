"""Documents of a text file.

Blank lines, or lines that hold only ``<|endoftext|>``, stand between documents; a file that has neither holds one
document a line. White space around a document is dropped, and line ends become newlines. The file is read in
blocks of whole lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from model_core.data.sources.source import MAX_DOCUMENT_BYTES, Batch, Document, File
from model_core.errors import InvalidData

_BLOCK_BYTES = 2**20
_EOT = "<|endoftext|>"
_SEPARATOR = re.compile(rf"\n(?:[^\S\n]*(?:{re.escape(_EOT)}[^\S\n]*)?\n)+")
_LINE_END = re.compile(r"\r+\n")
_BOM = "\ufeff".encode()
_Block = tuple[int, str]  # number of the first line; lines, each with its newline
_NOTHING = "\n"  # what stands before a document that has not begun: a separator needs a line end before it


def check_text(file: File) -> None:
    """Read a whole file.

    Raises:
        InvalidData: Naming the line that is not text.
    """
    for _ in _blocks(file):
        pass


def text_batches(file: File, *, block_bytes: int = _BLOCK_BYTES) -> Iterator[Batch]:
    """Documents of a text file.

    Args:
        file: To read.
        block_bytes: How much is read at a time; the documents do not depend on it.

    Raises:
        InvalidData: Naming the line that is not text, or where a document is too long.
    """
    blocks = _blocks(file, block_bytes)
    separated = _has_separators(_blocks(file, block_bytes))
    for texts in _between_separators(blocks, file) if separated else _line_by_line(blocks):
        yield Batch.of([Document(text) for text in texts])


def _between_separators(blocks: Iterable[_Block], file: File) -> Iterator[list[str]]:
    begun = _NOTHING
    for number, block in blocks:
        *complete, begun = _SEPARATOR.split(begun + block)
        yield _stripped(complete)
        begun = begun or _NOTHING
        if len(begun) > MAX_DOCUMENT_BYTES:
            raise InvalidData(
                f"{file.shown}, line {number}: the document there is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; "
                "put blank lines between documents"
            )
    yield _stripped([begun])


def _line_by_line(blocks: Iterable[_Block]) -> Iterator[list[str]]:
    for _, block in blocks:
        yield [text for text in _stripped(block.split("\n")) if text != _EOT]


def _stripped(texts: Iterable[str]) -> list[str]:
    return [stripped for text in texts if (stripped := text.strip())]


def _has_separators(blocks: Iterable[_Block]) -> bool:
    """Whether anything stands between two lines of text."""
    complete, begun = 0, _NOTHING
    for _, block in blocks:
        *parts, last = _SEPARATOR.split(begun + block)
        complete += len(_stripped(parts))
        has_begun = not last.isspace() and last != ""
        if complete + has_begun > 1:
            return True
        begun = "text\n" if has_begun else _NOTHING
    return False


def _blocks(file: File, block_bytes: int = _BLOCK_BYTES) -> Iterator[_Block]:
    number, rest = 1, b""
    with file.path.open("rb") as stream:
        while chunk := stream.read(block_bytes):
            if number == 1 and not rest:
                chunk = chunk.removeprefix(_BOM)
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield number, _decoded(lines + newline, file, number)
                number += lines.count(b"\n") + 1
            if len(rest) > MAX_DOCUMENT_BYTES:
                _decoded(rest, file, number)  # a binary file has no lines either, and is called what it is
                raise InvalidData(f"{file.shown}, line {number}: longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    if rest:
        yield number, _decoded(rest, file, number) + "\n"


def _decoded(raw: bytes, file: File, number: int) -> str:
    zero = raw.find(b"\0")
    try:
        text = raw[: zero if zero >= 0 else None].decode()
    except UnicodeDecodeError as error:
        line = number + raw.count(b"\n", 0, error.start)
        position = error.start - raw.rfind(b"\n", 0, error.start) - 1
        byte = f"byte 0x{raw[error.start]:02x} at position {position}"
        raise InvalidData(f"{file.shown}, line {line}: not UTF-8 ({byte}); convert the file to UTF-8") from None
    if zero >= 0:
        line = number + raw.count(b"\n", 0, zero)
        raise InvalidData(f"{file.shown}, line {line}: a zero byte, so this is a binary file; give UTF-8 text")
    return _LINE_END.sub("\n", text) if "\r" in text else text
