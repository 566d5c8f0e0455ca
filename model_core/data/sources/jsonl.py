"""Documents of a file that holds one JSON object a line."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from model_core.data.sources.source import MAX_DOCUMENT_BYTES, Batch, Document, File, category_of
from model_core.errors import InvalidData

_BATCH = 256


def jsonl_batches(file: File, column: str) -> Iterator[Batch]:
    """Documents of a file; a blank line, or one whose text is null or blank, holds none.

    Args:
        file: To read.
        column: The key of the text.

    Raises:
        InvalidData: Naming the line and what is wrong with it.
    """
    documents = _documents(file, column)
    while batch := list(islice(documents, _BATCH)):
        yield Batch.of(batch)


def _documents(file: File, column: str) -> Iterator[Document]:
    with file.path.open("rb") as stream:
        for number, raw in enumerate(iter(partial(stream.readline, MAX_DOCUMENT_BYTES + 1), b""), 1):
            try:
                document = _document(raw.removeprefix(BOM_UTF8) if number == 1 else raw, column)
            except InvalidData as error:
                raise InvalidData(f"{file.shown}, line {number}: {error}") from None
            if document is not None:
                yield document


def _document(raw: bytes, column: str) -> Document | None:
    """The document of a line, if it holds one; errors do not name the line."""
    line = _decoded(raw).rstrip("\r\n")
    if not line or line.isspace():
        return None
    row = _row(line)
    if column not in row:
        there = ", ".join(map(repr, row)) or "nothing"
        raise InvalidData(f"no column {column!r}; there is: {there}; name one as text_column")
    text = row[column]
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidData(f"{column!r} is {_kind(text)}, not text")
    if not text.isascii() and _has_half_a_character(text):
        raise InvalidData(f"{column!r} holds half of a surrogate pair, which is no character")
    return Document(text, category_of(row, column)) if text and not text.isspace() else None


def _decoded(raw: bytes) -> str:
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidData(f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise InvalidData(f"not UTF-8 ({byte}); convert the file to UTF-8") from None


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidData(f"not JSON: {error.msg} at column {error.colno}; give one object a line") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets without end
        raise InvalidData(f"not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise InvalidData(f"{_kind(row)}, not an object; give one object a line")
    return row


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _has_half_a_character(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
