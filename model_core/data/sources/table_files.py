"""Files with columns: JSON in any layout, CSV and TSV. The text is one column of each row.

JSON can have one object per line, a list of objects or texts, or objects over several lines. A line, item or row that
cannot be read is one bad document; the others are read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from model_core.data.sources.base import (
    MAX_LINE,
    BadDocument,
    Batch,
    Document,
    File,
    ReadOptions,
    find_category,
    unreadable_text,
)
from model_core.data.sources.text_files import pieces
from model_core.data.sources.text_stream import text_blocks
from model_core.errors import InvalidData

_BATCH_DOCUMENTS = 256
_BETWEEN_VALUES = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder(strict=False)  # a zero byte or tab inside a text is read, as in other formats
_DELIMITERS = {"csv": ",;\t", "tsv": "\t"}

_Line = tuple[int, str]
_Value = tuple[str, Any]  # location, and a value or the reason why there is none
_Found = Document | BadDocument | None


class _Unreadable(str):
    """The reason why a value cannot be read."""


def json_batches(file: File, options: ReadOptions) -> Iterator[Batch]:
    """Read the documents of a JSON file; those with a null or blank text are skipped.

    Args:
        file: File to read.
        options: How documents are read.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: A list is malformed, so that what follows cannot be read.
    """
    head = "".join(islice(text_blocks(file), 2)).lstrip()
    is_list = head.startswith("[")
    if is_list or _is_over_lines(head):
        values = _ValueReader(file).values(is_list=is_list)
        yield from _batches((document_of(value, location, options) for location, value in values), options)
    else:
        yield from _batches(_line_documents(file, options), options)


def csv_batches(file: File, options: ReadOptions, kind: str) -> Iterator[Batch]:
    """Read the documents of a file of separated values, whose first row names the columns.

    Args:
        file: File to read.
        options: How documents are read.
        kind: ``csv`` for commas, semicolons or tabs, whichever separates the text column; ``tsv`` for tabs.

    Yields:
        Batches in the order of the file; rows with a blank text are skipped.

    Raises:
        InvalidData: There is no such column, or a quoted value does not end.
    """
    csv.field_size_limit(MAX_LINE)
    lines = _lines(file)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    delimiter, columns = _header(first[1], file, options.text_column, _DELIMITERS[kind])
    yield from _batches(_csv_documents(lines, first[0], delimiter, columns, file, options), options)


def document_of(value: Any, location: str, options: ReadOptions) -> Document | BadDocument | None:
    """Return the document of a row.

    Args:
        value: Row by column, or the text itself.
        location: Where the row is, for errors.
        options: How documents are read.

    Returns:
        The document, or why it cannot be read; None if its text is null or blank.
    """
    if isinstance(value, _Unreadable):
        return BadDocument(location, str(value))
    try:
        text = value if isinstance(value, str) else text_of(_row(value), options.text_column)
    except InvalidData as error:
        return BadDocument(location, str(error))
    if not text or text.isspace():
        return None
    if (reason := unreadable_text(text)) is not None:
        return BadDocument(location, f"{options.text_column!r} {reason}" if reason.startswith("contains") else reason)
    return Document(text, None if isinstance(value, str) else find_category(value, options.text_column))


def document_batch(found: Iterable[Document | BadDocument], options: ReadOptions) -> Batch:
    """Build a batch of the documents of rows; long ones are cut into pieces.

    Args:
        found: Documents, and those that cannot be read, in order.
        options: How documents are read.

    Returns:
        The batch.
    """
    documents, bad = list[Document](), list[BadDocument]()
    for one in found:
        if isinstance(one, BadDocument):
            bad.append(one)
        elif len(one.text) <= options.piece:
            documents.append(one)
        else:
            documents += (Document(part, one.category) for part in pieces(one.text.rstrip(), options.piece))
    return Batch.of(documents, bad)


def text_of(value: Any, column: str) -> str | None:
    """Return the text in a column of a row.

    Args:
        value: Row by column. Texts in a list are joined with line feeds.
        column: Name of the column; ``a.b`` is `b` in the objects of `a`.

    Returns:
        The text; None if it is null.

    Raises:
        InvalidData: There is no such column, or it does not contain text.
    """
    found = _lookup(value, column)
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, list) and all(isinstance(item, str) for item in _items(found)):
        return "\n".join(_items(found))
    inside = f"; name what is in it, such as {column}.{next(iter(found))}" if isinstance(found, dict) and found else ""
    raise InvalidData(f"{column!r} is {_json_type(found)}, not text{inside}")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from chain.from_iterable(map(_items, value))
    elif value is not None:
        yield value


def _lookup(value: Any, column: str) -> Any:
    if isinstance(value, dict) and column in value:
        return value[column]
    if isinstance(value, list):
        return [_lookup(item, column) for item in value]
    name, dot, rest = column.partition(".")
    if isinstance(value, dict) and dot and name in value:
        return None if value[name] is None else _lookup(value[name], rest)
    columns = ", ".join(map(repr, value)) if isinstance(value, dict) else _json_type(value)
    raise InvalidData(f"no column {column!r}; there is: {columns or 'nothing'}; name one as text_column")


def _batches(found: Iterable[_Found], options: ReadOptions) -> Iterator[Batch]:
    remaining = iter(found)
    while some := list(islice(remaining, _BATCH_DOCUMENTS)):
        yield document_batch([one for one in some if one is not None], options)


def _row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidData(f"{_json_type(value)}, not an object; give objects")
    return value


def _is_over_lines(head: str) -> bool:
    """Whether the objects at the start of a file extend over several lines."""
    lines = (line for line in head.split("\n") if line.strip())
    first, second = next(lines, ""), next(lines, "")
    return bool(second) and _is_value(first) is _is_value(second) is False


def _is_value(line: str) -> bool:
    return not isinstance(_parse(line), _Unreadable)


def _parse(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return _Unreadable(f"not JSON: {error.msg} (column {error.colno}); give one object per line")
    except (ValueError, RecursionError) as error:  # a number with too many digits, or brackets nested too deeply
        return _Unreadable(f"JSON that cannot be read: {error}")


def _line_documents(file: File, options: ReadOptions) -> Iterator[_Found]:
    decode, column = _DECODER.decode, options.text_column
    for number, line in _lines(file):
        try:  # nearly every line is an object with a text, and there are millions
            row: Any = decode(line) if len(line) <= MAX_LINE else None
            text = row[column] if type(row) is dict else None
        except (ValueError, RecursionError, KeyError):
            text = None
        if type(text) is str and (text.isascii() or unreadable_text(text) is None):
            yield Document(text, find_category(row, column)) if text and not text.isspace() else None
        elif line and not line.isspace():
            yield document_of(_line_value(line), f"{file.display_name}, line {number}", options)


def _line_value(line: str) -> Any:
    if len(line) > MAX_LINE:
        return _Unreadable(f"longer than {MAX_LINE >> 20} million characters")
    if (reason := unreadable_text(line)) is not None:
        return _Unreadable(reason)
    value = _parse(line)
    is_text = isinstance(value, str) and not isinstance(value, _Unreadable)
    return _Unreadable("text, not an object; give one object per line") if is_text else value


def _lines(file: File) -> Iterator[_Line]:
    """Lines without their ends; the rest of a line that is too long is dropped."""
    number, rest, kept = 1, list[str](), 0
    for block in text_blocks(file):
        first, *others = block.split("\n")
        if kept <= MAX_LINE:
            rest.append(first)
            kept += len(first)
        for line in others:
            yield number, "".join(rest)
            number, rest, kept = number + 1, [line], len(line)
    yield number, "".join(rest)


class _ValueReader:
    """Reads the values of a list, or values one after the other, over any number of lines."""

    def __init__(self, file: File) -> None:
        self._blocks, self._name = text_blocks(file), file.display_name
        self._buffer, self._position, self._line, self._is_cut_off = "", 0, 1, False

    def values(self, *, is_list: bool) -> Iterator[_Value]:
        if is_list:
            self._skip_gap()
            self._advance(self._position + 1)
        while character := self._skip_gap():
            if is_list and character == "]":
                return
            yield self._next()
        if is_list and not self._is_cut_off:
            yield self._location(), _Unreadable("the list does not end; was the file cut off?")

    def _location(self) -> str:
        return f"{self._name}, line {self._line}"

    def _next(self) -> _Value:
        location = self._location()
        while True:
            reason = ""
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
                length = end - self._position
                if end < len(self._buffer) or not self._read_on():
                    self._advance(self._position + length)
                    return location, value
            except json.JSONDecodeError as error:
                reason = f"not JSON: {error.msg} (line {self._line + error.lineno - self._lines_before()})"
                self._is_cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer.rstrip())
            except (ValueError, RecursionError) as error:
                reason = f"JSON that cannot be read: {error}"
            if reason and (len(self._buffer) - self._position > MAX_LINE or not self._read_on()):
                if not self._is_cut_off:
                    raise InvalidData(f"{location}: {reason}; what follows cannot be read")
                self._advance(len(self._buffer))
                return location, _Unreadable(f"{reason}; was the file cut off?")

    def _lines_before(self) -> int:
        """Number of the line in the buffer at which the value starts, as the decoder counts."""
        return self._buffer.count("\n", 0, self._position) + 1

    def _skip_gap(self) -> str:
        """Skip white space and commas; return the next character, empty at the end of the file."""
        while True:
            self._advance(_BETWEEN_VALUES.match(self._buffer, self._position).end())  # type: ignore[union-attr]
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_on():
                return ""

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _read_on(self) -> bool:
        """Double what is unread, so that a long value is parsed only a few times; False at the end of the file."""
        unread = self._buffer[self._position :]
        parts, size = [unread], 0
        while size <= len(unread) and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            size += len(block)
        self._buffer, self._position = "".join(parts), 0
        return size > 0


def _header(line: str, file: File, column: str, delimiters: str) -> tuple[str, list[str]]:
    """Find the delimiter and the columns of the first row."""
    rows = [(mark, [name.strip() for name in next(csv.reader([line], delimiter=mark))]) for mark in delimiters]
    found = next((row for row in rows if column in row[1]), None)
    if found is None:
        _, columns = max(rows, key=lambda row: len(row[1]))
        there_is = ", ".join(map(repr, columns[:20]))
        detail = f"the first row has no column {column!r}; there is: {there_is}; name one as text_column"
        raise InvalidData(f"{file.display_name}: {detail}")
    return found


def _csv_documents(
    lines: Iterator[_Line], header: int, delimiter: str, columns: list[str], file: File, options: ReadOptions
) -> Iterator[_Found]:
    """Documents of the rows below the header; a tab in TSV is never part of a value, so quotes can be literal."""
    with_ends = (f"{line}\n" for _, line in lines)
    rows = csv.reader(with_ends, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL, strict=True)
    if delimiter == "\t":
        rows = csv.reader(with_ends, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    while True:
        location = f"{file.display_name}, line {header + rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadDocument(location, f"{error}; a text with a quote or a delimiter needs quotes around it")
            continue
        if delimiter == "\t":
            row = list(map(_unquoted, row))
        if row:
            yield _csv_document(row, columns, location, options)


def _csv_document(row: list[str], columns: list[str], location: str, options: ReadOptions) -> _Found:
    if any(row[len(columns) :]) or len(row) <= columns.index(options.text_column):
        detail = f"{len(row)} values, and the first row names {len(columns)} columns"
        return BadDocument(location, f"{detail}; a text with a delimiter needs quotes around it")
    return document_of(dict(zip(columns, row, strict=False)), location, options)


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else value


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
