"""Readers for text, JSON Lines and parquet files; each yields batches of documents.

In a text file, blank lines or lines with only ``<|endoftext|>`` separate documents; without either, every line is a
document. JSON Lines and parquet files name the column with the text. Files are read in blocks, so memory stays flat.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from model_core.data.sources.base import CATEGORY_COLUMNS, MAX_DOCUMENT_BYTES, Batch, Document, File, category_of
from model_core.errors import InvalidData

_BLOCK_BYTES = 2**20
_EOT = "<|endoftext|>"
_SEPARATOR = re.compile(rf"\n(?:[^\S\n]*(?:{re.escape(_EOT)}[^\S\n]*)?\n)+")
_LINE_END = re.compile(r"\r+\n")
_BOM = "\ufeff".encode()
_Block = tuple[int, str]  # number of the first line; lines, each with its newline
_NOTHING = "\n"  # what stands before a document that has not begun: a separator needs a line end before it


def check_text(file: File) -> None:
    """Read a whole file to check that it is text.

    Args:
        file: File to read.

    Raises:
        InvalidData: Naming the line that is not text.
    """
    for _ in _blocks(file):
        pass


def text_batches(file: File, *, block_bytes: int = _BLOCK_BYTES) -> Iterator[Batch]:
    """Read the documents of a text file.

    Args:
        file: To read.
        block_bytes: How much is read at a time; the documents do not depend on it.

    Yields:
        Batches in the order of the file.

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


_BATCH = 256


def jsonl_batches(file: File, column: str) -> Iterator[Batch]:
    """Read the documents of a JSON Lines file; lines with a null or blank text hold none.

    Args:
        file: To read.
        column: The key of the text.

    Yields:
        Batches in the order of the file.

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
    line = _jsonl_decoded(raw).rstrip("\r\n")
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


def _jsonl_decoded(raw: bytes) -> str:
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


_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20


def parquet_batches(file: File, column: str) -> Iterator[Batch]:
    """Read the documents of a parquet file; rows with a null or blank text hold none.

    Args:
        file: To read.
        column: The column of the text.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: The file cannot be read, or has no such column of text.
    """
    import pyarrow.parquet as pq

    with _told(file), pq.ParquetFile(file.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
        columns = _columns(table.schema_arrow, file, column)
        for number in range(table.num_row_groups):
            with _told(file, f", row group {number}"):
                for rows in table.iter_batches(_BATCH_ROWS, [number], columns, use_threads=False):
                    yield _batch(rows, column, f"{file.shown}, row group {number}")


def _columns(schema: Any, file: File, column: str) -> list[str]:
    """The columns to read: the text, and what tells its category."""
    import pyarrow as pa

    def is_text(name: str) -> bool:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

    if schema.names.count(column) != 1:
        there = ", ".join(map(repr, schema.names))
        raise InvalidData(f"{file.shown} has no column {column!r}; there is: {there}; name one as text_column")
    if not is_text(column):
        raise InvalidData(f"{file.shown}: column {column!r} holds {schema.field(column).type}, not text")
    telling = [name for name in CATEGORY_COLUMNS if name != column and schema.names.count(name) == 1 and is_text(name)]
    return [column, *telling[:1]]


def _batch(rows: Any, column: str, place: str) -> Batch:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.cast(rows[column], pa.large_string())
    if (pc.max(pc.binary_length(text)).as_py() or 0) > MAX_DOCUMENT_BYTES:
        raise InvalidData(f"{place}: a text longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    has_text = pc.fill_null(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(text)), 0), False)
    category = next((name for name in rows.column_names if name != column), None)

    def documents() -> Iterable[Document]:
        kept = rows.filter(has_text)
        try:
            texts = kept[column].to_pylist()
        except UnicodeDecodeError:
            raise InvalidData(f"{place}: {column!r} holds bytes that are not UTF-8") from None
        return map(Document, texts, kept[category].to_pylist()) if category else map(Document, texts)

    return Batch(pc.sum(has_text).as_py() or 0, documents)


@contextmanager
def _told(file: File, place: str = "") -> Iterator[None]:
    """Turn what the library says of a broken file into an error that names the file and the place."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise InvalidData(f"{file.shown}{place}: not parquet that can be read: {said}") from None
