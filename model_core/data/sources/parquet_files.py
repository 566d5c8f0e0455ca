"""Parquet files: one column, or one field of a struct, contains the text.

Text is a string, bytes in UTF-8, a list of these, or a dictionary of them. Rows are read in batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model_core.data.sources.base import CATEGORY_COLUMNS, Batch, Document, File, ReadOptions
from model_core.data.sources.file_names import compression_of
from model_core.data.sources.table_files import document_batch, document_of
from model_core.data.sources.text_stream import seekable
from model_core.errors import InvalidData

_BATCH_DOCUMENTS = 256
_BUFFER_BYTES = 2**20


def parquet_batches(file: File, options: ReadOptions) -> Iterator[Batch]:
    """Read the documents of a parquet file; rows with a null or blank text are skipped.

    Args:
        file: File to read.
        options: How documents are read.

    Yields:
        Batches in the order of the file.

    Raises:
        InvalidData: The file cannot be read, or has no such text column.
    """
    with _parquet_errors(file), _open(file) as table:
        columns = _columns(table.schema_arrow, file, options.text_column)
        for number in range(table.num_row_groups):
            first = 0
            with _parquet_errors(file, f", row group {number}"):
                for rows in table.iter_batches(_BATCH_DOCUMENTS, [number], columns, use_threads=False):
                    yield _batch(rows, f"{file.display_name}, row group {number}", first, options)
                    first += len(rows)


@contextmanager
def _open(file: File) -> Iterator[Any]:
    import pyarrow.parquet as pq

    options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
    if compression_of(file.path.name) is None:
        with pq.ParquetFile(file.path, **options) as table:
            yield table
        return
    with seekable(file) as unpacked, pq.ParquetFile(unpacked, **options) as table:
        yield table


def _columns(schema: Any, file: File, column: str) -> list[str]:
    """Return the columns to read: that of the text, and its category if there is one."""
    name = next((name for name in _prefixes(column) if schema.names.count(name) == 1), None)
    if name is None:
        columns = ", ".join(map(repr, schema.names))
        raise InvalidData(f"{file.display_name} has no column {column!r}; there is: {columns}; name one as text_column")
    dtype = _field_type(schema.field(name).type, column[len(name) + 1 :])
    if dtype is None or not _is_text(dtype):
        found = schema.field(name).type if dtype is None else dtype
        advice = _fields_of(found, column)
        raise InvalidData(f"{file.display_name}: column {column!r} contains {found}, not text{advice}")
    category = [
        other
        for other in CATEGORY_COLUMNS
        if other != name and schema.names.count(other) == 1 and _is_string(schema.field(other).type)
    ]
    return [name, *category[:1]]


def _prefixes(column: str) -> Iterator[str]:
    """The column itself, and what precedes each of its dots, longest first."""
    while column:
        yield column
        column = column.rpartition(".")[0]


def _field_type(dtype: Any, path: str) -> Any:
    """Type of a field inside structs; None if there is no such field."""
    import pyarrow as pa

    dtype = _item_type(dtype)
    if not path:
        return dtype
    name, _, rest = path.partition(".")
    if not pa.types.is_struct(dtype) or dtype.get_field_index(name) < 0:
        return None
    return _field_type(dtype.field(name).type, rest)


def _fields_of(dtype: Any, column: str) -> str:
    import pyarrow as pa

    if not pa.types.is_struct(dtype) or not dtype.num_fields:
        return ""
    return f"; name what is in it, such as {column}.{dtype.field(0).name}"


def _item_type(dtype: Any) -> Any:
    import pyarrow as pa

    while pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _is_string(dtype: Any) -> bool:
    import pyarrow as pa

    dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype))


def _is_text(dtype: Any) -> bool:
    import pyarrow as pa

    is_bytes = pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype)
    return bool(is_bytes or pa.types.is_fixed_size_binary(dtype) or _is_string(dtype))


def _batch(rows: Any, location: str, first: int, options: ReadOptions) -> Batch:
    """Build a batch; a plain column of short texts is decoded on demand."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name, *category = rows.schema.names
    if name != options.text_column or not _is_string(rows.schema.field(name).type):
        return _row_batch(rows, location, first, options)
    text = pc.cast(rows[name], pa.large_string())
    if not _is_valid(text):
        return _row_batch(rows, location, first, options)
    longest = pc.max(pc.utf8_length(text)).as_py() or 0
    if longest > options.piece:
        return _row_batch(rows, location, first, options)
    has_text = pc.fill_null(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(text)), 0), False)

    def documents() -> Iterator[Document]:
        kept = rows.filter(has_text)
        texts = kept[name].to_pylist()
        return map(Document, texts, kept[category[0]].to_pylist()) if category else map(Document, texts)

    return Batch(pc.sum(has_text).as_py() or 0, documents, longest)


def _is_valid(text: Any) -> bool:
    """Whether the bytes of all strings are UTF-8."""
    import pyarrow as pa

    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _row_batch(rows: Any, location: str, first: int, options: ReadOptions) -> Batch:
    """Build a batch row by row, for texts inside other values, bytes, and long or damaged texts."""
    columns = {name: [_decoded(value) for value in _values(rows[name])] for name in rows.schema.names}
    found = (
        document_of({name: values[n] for name, values in columns.items()}, f"{location}, row {first + n}", options)
        for n in range(len(rows))
    )
    return document_batch([one for one in found if one is not None], options)


def _values(array: Any) -> list[Any]:
    """Values of a column; strings as bytes, because Arrow does not check that they are UTF-8."""
    import pyarrow as pa

    values: list[Any]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    values = (array.cast(pa.large_binary()) if _is_string(array.type) else array).to_pylist()
    return values


def _decoded(value: Any) -> Any:
    """Decode bytes at any depth; those that are not UTF-8 become lone surrogates."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return {key: _decoded(item) for key, item in value.items()} if isinstance(value, dict) else value


@contextmanager
def _parquet_errors(file: File, location: str = "") -> Iterator[None]:
    """Translate exceptions of the library into errors that name the file and the location."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())[:300]
        raise InvalidData(f"{file.display_name}{location}: parquet that cannot be read: {message}") from None
