"""Types that every source of documents shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model_core.config_loader import ConfigWarning

MAX_DOCUMENT_BYTES = 16 * 2**20  # of one document, and of one line of a file: what is in memory at once stays small
CATEGORY_COLUMNS = ("category", "data-source")  # the first that a corpus has


class Document(NamedTuple):  # of which there are millions
    """One text of a corpus.

    Attributes:
        text: Never empty.
        category: What the corpus says it is, where it says so.
    """

    text: str
    category: str | None = None


@dataclass(frozen=True)
class Source:
    """A corpus. It can be read more than once, and gives the same documents in the same order each time.

    Attributes:
        name: As the configuration writes it, without the directories of a file.
        revision: Changes when the documents do.
        count: Documents it has; None where only reading tells.
        text_bytes: About how much text, in UTF-8; None where unknown.
        documents: ``documents(n)`` reads from the document after the first `n`.
        facts: What else a manifest should say of it.
        advice: What whoever asked for it should know.
    """

    name: str
    revision: str
    count: int | None
    text_bytes: int | None
    documents: Callable[[int], Iterator[Document]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    advice: tuple[ConfigWarning, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Some documents of a file that lie together, made when they are looked at.

    Attributes:
        count: How many.
        documents: Makes them.
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
        path: Where it lies.
        shown: What errors call it.
    """

    path: Path
    shown: str


def category_of(row: Mapping[str, Any], column: str) -> str | None:
    """Return the category of a row's text, if the corpus states one.

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
