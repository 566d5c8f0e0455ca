"""What every source of documents is, whatever lies behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
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
    """

    name: str
    revision: str
    count: int | None
    text_bytes: int | None
    documents: Callable[[int], Iterator[Document]]
    facts: Mapping[str, Any] = field(default_factory=dict)
