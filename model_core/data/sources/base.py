"""Types that all sources of documents share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model_core.config_loader import ConfigWarning

MAX_DOCUMENT_BYTES = 16 * 2**20  # of a document, and of a line of a file; bounds the memory
CATEGORY_COLUMNS = ("category", "data-source")  # the first existing one is used


class Document(NamedTuple):  # a tuple, because a corpus has millions of documents
    """One text of a corpus.

    Attributes:
        text: Text of the document, never empty.
        category: Category that the corpus gives it, if any.
    """

    text: str
    category: str | None = None


@dataclass(frozen=True)
class Source:
    """A corpus that can be read repeatedly, with the same documents in the same order each time.

    Attributes:
        name: Name as in the configuration, without the directories of a file.
        revision: Revision of the documents, which changes when they do.
        count: Number of documents; None if unknown.
        text_bytes: Approximate size of the text in UTF-8; None if unknown.
        documents: Function from the number of documents to skip to an iterator of the rest.
        facts: Further entries for the manifest.
        warnings: Warnings for the user.
    """

    name: str
    revision: str
    count: int | None
    text_bytes: int | None
    documents: Callable[[int], Iterator[Document]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[ConfigWarning, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of a file, decoded on demand.

    Attributes:
        count: Number of documents.
        documents: Function that decodes the documents.
    """

    count: int
    documents: Callable[[], Iterable[Document]]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Batch:
        """Build a batch from documents in memory.

        Args:
            documents: The documents, in order.

        Returns:
            The batch.
        """
        return cls(len(documents), lambda: documents)


@dataclass(frozen=True)
class File:
    """A file to read documents from.

    Attributes:
        path: Path of the file.
        display_name: Name of the file in errors.
    """

    path: Path
    display_name: str


def find_category(row: Mapping[str, Any], column: str) -> str | None:
    """Return the category of a row's text, if the corpus has categories.

    Args:
        row: Values by column.
        column: Column with the text.

    Returns:
        The category; None if there is none.
    """
    for name in CATEGORY_COLUMNS:
        if name in row and name != column:
            value = row[name]
            return value if isinstance(value, str) else None
    return None
