"""Types that all sources of documents share, and the limit for documents that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from model_core.config_loader import ConfigWarning
from model_core.errors import InvalidData

MAX_DOCUMENT = 16 * 2**20  # characters; a longer text is read in pieces, which bounds the memory
MAX_LINE = 64 * 2**20  # characters of a line or value of JSON, or of a row of CSV
MAX_BAD, BAD_SHARE, NAMED_BAD = 100, 1000, 10  # at most 100 bad documents, and at most 1 in 1,000; ten are named
CATEGORY_COLUMNS = ("category", "data-source")  # the first existing one is used


DocumentsBy = Literal["auto", "line", "paragraph", "marker", "file"]
ReadAs = Literal["line", "paragraph", "marker", "file", "rows", "pieces"]
SpecialText = Literal["keep", "strip", "split"]
OnBadDocument = Literal["fail", "skip"]


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read from files; the keys of the section `data`.

    Attributes:
        text_column: Column with the text, for formats with columns.
        documents: What separates the documents of a text file.
        on_bad_document: Whether a document that cannot be read ends the preparation.
        piece: Length in characters above which a document is read in pieces.
    """

    text_column: str = "text"
    documents: DocumentsBy = "auto"
    on_bad_document: OnBadDocument = "skip"
    piece: int = MAX_DOCUMENT


class BadDocuments(InvalidData):
    """A source has documents that cannot be read, and more than are skipped. Completed work is kept."""


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
        reading: Function that returns further entries for the manifest's `reading`, once the documents were read.
    """

    name: str
    revision: str
    count: int | None
    text_bytes: int | None
    documents: Callable[[int], Iterator[Document]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[ConfigWarning, ...] = ()
    reading: Callable[[], Mapping[str, Any]] = dict


class BadDocument(NamedTuple):
    """A document that cannot be read.

    Attributes:
        location: File, and line or row.
        reason: Why it cannot be read, and what would be right.
    """

    location: str
    reason: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of a file, decoded on demand.

    Attributes:
        count: Number of documents.
        documents: Function that decodes the documents.
        longest: Length of the longest document in characters.
        bad: Documents among them that cannot be read, and are not counted.
    """

    count: int
    documents: Callable[[], Iterable[Document]]
    longest: int = 0
    bad: tuple[BadDocument, ...] = ()

    @classmethod
    def of(cls, documents: Sequence[Document], bad: Iterable[BadDocument] = ()) -> Batch:
        """Build a batch from documents in memory.

        Args:
            documents: The documents, in order.
            bad: Documents among them that cannot be read.

        Returns:
            The batch.
        """
        longest = max((len(document.text) for document in documents), default=0)
        return cls(len(documents), lambda: documents, longest, tuple(bad))


class BadDocumentLog:
    """Counts the documents of a source that cannot be read, and raises when there are too many.

    Attributes:
        count: Number of bad documents.
        first: The first of them.

    Args:
        policy: ``fail`` at the first one, or ``skip`` them up to the limits.
    """

    def __init__(self, policy: OnBadDocument) -> None:
        self.count, self.first = 0, list[BadDocument]()
        self._policy, self._documents = policy, 0

    def add(self, batch: Batch) -> None:
        """Count the documents of a batch.

        Args:
            batch: The next batch of the source.

        Raises:
            BadDocuments: There are too many bad documents already.
        """
        self._documents += batch.count + len(batch.bad)
        if not batch.bad:
            return
        self.count += len(batch.bad)
        self.first += batch.bad[: NAMED_BAD - len(self.first)]
        if self._policy == "fail":
            raise BadDocuments(f"{self.first[0]}; data.on_bad_document: skip leaves it out")
        if self.count > MAX_BAD:
            raise self._error(f"more than {MAX_BAD} documents cannot be read")

    def check(self) -> None:
        """Check the share of bad documents, at the end of the source.

        Raises:
            BadDocuments: There are too many.
        """
        if self.count * BAD_SHARE > self._documents:
            share = f"{self.count:,} of {self._documents:,} documents cannot be read"
            raise self._error(f"{share}, which is more than 1 in {BAD_SHARE:,}")

    def _error(self, reason: str) -> BadDocuments:
        named = "; ".join(map(str, self.first)) if self.count > 1 else str(self.first[0])
        return BadDocuments(f"{named} ({reason})" if self.count == 1 else f"{reason}: {named}")

    def summary(self) -> dict[str, Any]:
        """Summarize the bad documents for the manifest.

        Returns:
            Their number and the first of them, as text.
        """
        return {"count": self.count, "first": [str(bad) for bad in self.first]}


@dataclass(frozen=True)
class File:
    """A file to read documents from.

    Attributes:
        path: Path of the file.
        display_name: Name of the file in errors.
    """

    path: Path
    display_name: str


def unreadable_text(text: str) -> str | None:
    """Explain why a text cannot be stored as UTF-8.

    Args:
        text: Text of a document or line; undecodable bytes of its file are lone surrogates, as Python decodes them
            with ``surrogateescape``.

    Returns:
        The reason; None if the text is fine.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        if not 0xDC80 <= surrogate <= 0xDCFF:
            return "contains half of a surrogate pair, which is not a character"
        line = text[text.rfind("\n", 0, error.start) + 1 : error.start]
        position = len(line.encode("utf-8", "surrogateescape"))
        return f"not UTF-8 (byte 0x{surrogate - 0xDC00:02x} at position {position}); convert the file to UTF-8"
    return None


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
