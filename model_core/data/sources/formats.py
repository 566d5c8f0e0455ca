"""Readers for text, JSON Lines and parquet files; each yields batches of documents.

In a text file, blank lines or lines with only ``<|endoftext|>`` separate documents; without either, every line is a
document. In JSON Lines and parquet files, one column contains the text. Files are read in blocks, so memory use is
constant.
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

from model_core.data.sources.base import CATEGORY_COLUMNS, MAX_DOCUMENT_BYTES, Batch, Document, File, find_category
from model_core.errors import InvalidData

_BLOCK_BYTES = 2**20
_BATCH_DOCUMENTS = 256
_PARQUET_BUFFER_BYTES = 2**20
_EOT = "<|endoftext|>"
_SEPARATOR = re.compile(rf"\n(?:[^\S\n]*(?:{re.escape(_EOT)}[^\S\n]*)?\n)+")
_LINE_END = re.compile(r"\r+\n")
_BOM = "\ufeff".encode()
_NOT_STARTED = "\n"  # prefix of a document that has not started, because a separator follows a line end
_Block = tuple[int, str]  # number of the first line, and lines with their newlines


def check_text(file: File) -> None:
    """Read a whole file to check that it is text.

    Args:
        file: File to read.

    Raises:
        InvalidData: The file is not text; the message names the line.
    """
    for _ in _blocks(file):
        pass


def text_batches(file: File, *, block_bytes: int = _BLOCK_BYTES) -> Iterator[Batch]:
    """Read the documents of a text file.

    Args:
        file: File to read.
        block_bytes: Bytes read at a time; the documents do not depend on it.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: The file is not text, or a document is too long; the message names the line.
    """
    blocks = _blocks(file, block_bytes)
    has_separators = _has_separators(_blocks(file, block_bytes))
    for texts in _split_at_separators(blocks, file) if has_separators else _split_lines(blocks):
        yield Batch.of([Document(text) for text in texts])


def jsonl_batches(file: File, column: str) -> Iterator[Batch]:
    """Read the documents of a JSON Lines file; lines with a null or blank text are skipped.

    Args:
        file: File to read.
        column: Key of the text.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: A line is malformed; the message names the line and the reason.
    """
    documents = _documents(file, column)
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        yield Batch.of(batch)


def parquet_batches(file: File, column: str) -> Iterator[Batch]:
    """Read the documents of a parquet file; rows with a null or blank text are skipped.

    Args:
        file: File to read.
        column: Column with the text.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: The file cannot be read, or has no such text column.
    """
    import pyarrow.parquet as pq

    with _parquet_errors(file), pq.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as table:
        columns = _columns(table.schema_arrow, file, column)
        for number in range(table.num_row_groups):
            with _parquet_errors(file, f", row group {number}"):
                for rows in table.iter_batches(_BATCH_DOCUMENTS, [number], columns, use_threads=False):
                    yield _batch(rows, column, f"{file.display_name}, row group {number}")


def _split_at_separators(blocks: Iterable[_Block], file: File) -> Iterator[list[str]]:
    started = _NOT_STARTED
    for number, block in blocks:
        *complete, started = _SEPARATOR.split(started + block)
        yield _strip_all(complete)
        started = started or _NOT_STARTED
        if len(started) > MAX_DOCUMENT_BYTES:
            raise InvalidData(
                f"{file.display_name}, line {number}: the document is longer than {MAX_DOCUMENT_BYTES >> 20} MiB; "
                "put blank lines between documents"
            )
    yield _strip_all([started])


def _split_lines(blocks: Iterable[_Block]) -> Iterator[list[str]]:
    for _, block in blocks:
        yield [text for text in _strip_all(block.split("\n")) if text != _EOT]


def _strip_all(texts: Iterable[str]) -> list[str]:
    return [stripped for text in texts if (stripped := text.strip())]


def _has_separators(blocks: Iterable[_Block]) -> bool:
    """Whether a separator divides the text into at least two documents."""
    count, started = 0, _NOT_STARTED
    for _, block in blocks:
        *complete, last = _SEPARATOR.split(started + block)
        count += len(_strip_all(complete))
        has_started = not last.isspace() and last != ""
        if count + has_started > 1:
            return True
        started = "text\n" if has_started else _NOT_STARTED
    return False


def _blocks(file: File, block_bytes: int = _BLOCK_BYTES) -> Iterator[_Block]:
    number, rest = 1, b""
    with file.path.open("rb") as stream:
        while chunk := stream.read(block_bytes):
            if number == 1 and not rest:
                chunk = chunk.removeprefix(_BOM)
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield number, _decode_block(lines + newline, file, number)
                number += lines.count(b"\n") + 1
            if len(rest) > MAX_DOCUMENT_BYTES:
                _decode_block(rest, file, number)  # reports a binary file as such, not as one long line
                raise InvalidData(f"{file.display_name}, line {number}: longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    if rest:
        yield number, _decode_block(rest, file, number) + "\n"


def _decode_block(raw: bytes, file: File, number: int) -> str:
    zero = raw.find(b"\0")
    try:
        text = raw[: zero if zero >= 0 else None].decode()
    except UnicodeDecodeError as error:
        line = number + raw.count(b"\n", 0, error.start)
        position = error.start - raw.rfind(b"\n", 0, error.start) - 1
        byte = f"byte 0x{raw[error.start]:02x} at position {position}"
        raise InvalidData(f"{file.display_name}, line {line}: not UTF-8 ({byte}); convert the file to UTF-8") from None
    if zero >= 0:
        line = number + raw.count(b"\n", 0, zero)
        raise InvalidData(f"{file.display_name}, line {line}: a zero byte, so this is a binary file; give UTF-8 text")
    return _LINE_END.sub("\n", text) if "\r" in text else text


def _documents(file: File, column: str) -> Iterator[Document]:
    with file.path.open("rb") as stream:
        for number, raw in enumerate(iter(partial(stream.readline, MAX_DOCUMENT_BYTES + 1), b""), 1):
            try:
                document = _document(raw.removeprefix(BOM_UTF8) if number == 1 else raw, column)
            except InvalidData as error:
                raise InvalidData(f"{file.display_name}, line {number}: {error}") from None
            if document is not None:
                yield document


def _document(raw: bytes, column: str) -> Document | None:
    """Return the document of a line, if there is one; the caller adds the line to errors."""
    line = _decode_line(raw).rstrip("\r\n")
    if not line or line.isspace():
        return None
    row = _row(line)
    if column not in row:
        columns = ", ".join(map(repr, row)) or "nothing"
        raise InvalidData(f"no column {column!r}; there is: {columns}; name one as text_column")
    text = row[column]
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidData(f"{column!r} is {_json_type(text)}, not text")
    if not text.isascii() and _has_lone_surrogate(text):
        raise InvalidData(f"{column!r} contains half of a surrogate pair, which is not a character")
    return Document(text, find_category(row, column)) if text and not text.isspace() else None


def _decode_line(raw: bytes) -> str:
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
        raise InvalidData(f"not JSON: {error.msg} at column {error.colno}; give one object per line") from None
    except (ValueError, RecursionError) as error:  # a number with too many digits, or brackets nested too deeply
        raise InvalidData(f"JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise InvalidData(f"{_json_type(row)}, not an object; give one object per line")
    return row


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _columns(schema: Any, file: File, column: str) -> list[str]:
    """Return the columns to read: the text, and its category if there is one."""
    import pyarrow as pa

    def is_text(name: str) -> bool:
        dtype = schema.field(name).type
        dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
        return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))

    if schema.names.count(column) != 1:
        columns = ", ".join(map(repr, schema.names))
        raise InvalidData(f"{file.display_name} has no column {column!r}; there is: {columns}; name one as text_column")
    if not is_text(column):
        raise InvalidData(f"{file.display_name}: column {column!r} contains {schema.field(column).type}, not text")
    category = [name for name in CATEGORY_COLUMNS if name != column and schema.names.count(name) == 1 and is_text(name)]
    return [column, *category[:1]]


def _batch(rows: Any, column: str, location: str) -> Batch:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.cast(rows[column], pa.large_string())
    if (pc.max(pc.binary_length(text)).as_py() or 0) > MAX_DOCUMENT_BYTES:
        raise InvalidData(f"{location}: a text longer than {MAX_DOCUMENT_BYTES >> 20} MiB")
    has_text = pc.fill_null(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(text)), 0), False)
    category = next((name for name in rows.column_names if name != column), None)

    def documents() -> Iterable[Document]:
        kept = rows.filter(has_text)
        try:
            texts = kept[column].to_pylist()
        except UnicodeDecodeError:
            raise InvalidData(f"{location}: {column!r} contains bytes that are not UTF-8") from None
        return map(Document, texts, kept[category].to_pylist()) if category else map(Document, texts)

    return Batch(pc.sum(has_text).as_py() or 0, documents)


@contextmanager
def _parquet_errors(file: File, location: str = "") -> Iterator[None]:
    """Translate exceptions of the library into errors that name the file and the location."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:300]
        raise InvalidData(f"{file.display_name}{location}: parquet that cannot be read: {message}") from None
