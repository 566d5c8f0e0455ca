"""Documents of a parquet file, some rows at a time; columns that are not needed are not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from model_core.data.sources.source import CATEGORY_COLUMNS, MAX_DOCUMENT_BYTES, Batch, Document, File
from model_core.errors import InvalidData

_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20


def parquet_batches(file: File, column: str) -> Iterator[Batch]:
    """Documents of a file; a row whose text is null or blank holds none.

    Args:
        file: To read.
        column: The column of the text.

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
