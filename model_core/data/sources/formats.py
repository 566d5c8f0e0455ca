"""Chooses the reader of a file by the ending of its name, and looks through files before they are used.

Looking through a file finds out how its documents are separated, how many there are, and which cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from model_core.data.sources.base import BadDocumentLog, Batch, Document, File, ReadAs, ReadOptions
from model_core.data.sources.file_names import format_of
from model_core.data.sources.parquet_files import parquet_batches
from model_core.data.sources.table_files import csv_batches, json_batches
from model_core.data.sources.text_files import separator_of, text_batches


@dataclass(frozen=True)
class Survey:
    """What a file contains.

    Attributes:
        read_as: What separates its documents; ``rows`` for formats with columns.
        documents: Number of documents.
        longest: Length of the longest document in characters.
    """

    read_as: ReadAs
    documents: int
    longest: int


def read_batches(file: File, options: ReadOptions) -> Iterator[Batch]:
    """Read the documents of a file in the format of its ending; unknown endings are text.

    Args:
        file: File to read.
        options: How documents are read.

    Returns:
        Batches in the order of the file.

    Raises:
        InvalidData: The file cannot be read.
    """
    kind = format_of(file.path.name)
    if kind == "json":
        return json_batches(file, options)
    if kind == "csv" or kind == "tsv":
        return csv_batches(file, options, kind)
    if kind == "parquet":
        return parquet_batches(file, options)
    return text_batches(file, options)


def survey(file: File, options: ReadOptions, log: BadDocumentLog, on_batch: Callable[[int], None]) -> Survey:
    """Look through a file.

    Args:
        file: File to read.
        options: How documents are read.
        log: Counts the documents that cannot be read.
        on_batch: Called with the number of documents of each batch.

    Returns:
        What the file contains.

    Raises:
        InvalidData: The file cannot be read.
        BadDocuments: Too many documents cannot be read.
    """
    read_as: ReadAs = "rows" if has_columns(file) else separator_of(file, options, on_block=lambda: on_batch(0))
    documents = longest = 0
    for batch in read_batches(file, with_separator(options, read_as)):
        log.add(batch)
        documents, longest = documents + batch.count, max(longest, batch.longest)
        on_batch(batch.count)
    return Survey(read_as, documents, longest)


def has_columns(file: File) -> bool:
    """Return whether the documents of a file are rows with columns.

    Args:
        file: The file.

    Returns:
        False for text.
    """
    return format_of(file.path.name) not in {"text", None}


def with_separator(options: ReadOptions, read_as: ReadAs) -> ReadOptions:
    """Fix what separates documents, so that it is not decided again.

    Args:
        options: How documents are read.
        read_as: A survey's result.

    Returns:
        The options of the file.
    """
    return options if read_as == "rows" or read_as == "pieces" else replace(options, documents=read_as)


def skip_documents(batches: Iterable[Batch], skip: int) -> Iterator[Document]:
    """Skip the first documents; batches that are skipped completely are not decoded.

    Args:
        batches: Batches in order.
        skip: Number of documents to skip.

    Yields:
        The remaining documents.
    """
    for batch in batches:
        if skip < batch.count:
            yield from islice(batch.documents(), skip, None)
        skip = max(0, skip - batch.count)
