"""The end-of-text marker inside documents: kept as text, removed, or a separator of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from model_core.data.sources.base import Document, Source, SpecialText
from model_core.tokenizer import END_OF_TEXT


def without_special_text(source: Source, mode: SpecialText) -> Source:
    """Treat the marker ``<|endoftext|>`` inside the documents of a source.

    Args:
        source: Source of the documents.
        mode: ``keep`` it as text, ``strip`` it, or ``split`` the document there.

    Returns:
        The source with the treated documents; its entry `special_texts` counts the markers.
    """
    if mode == "keep":
        return source
    found, parts_of = [0], _split if mode == "split" else _stripped

    def documents(skip: int) -> Iterator[Document]:
        found[0] = 0
        return islice(_treated(source.documents(0), parts_of, found), skip, None)

    return replace(
        source, count=None, documents=documents, reading=lambda: {**source.reading(), "special_texts": found[0]}
    )


def _treated(
    documents: Iterator[Document], parts_of: Callable[[str], list[str]], found: list[int]
) -> Iterator[Document]:
    for document in documents:
        if END_OF_TEXT not in document.text:
            yield document
            continue
        found[0] += document.text.count(END_OF_TEXT)
        yield from (Document(part, document.category) for part in parts_of(document.text) if part.strip())


def _split(text: str) -> list[str]:
    return [part.strip("\n").rstrip() for part in text.split(END_OF_TEXT) if part]


def _stripped(text: str) -> list[str]:
    return list(filter(None, [text.replace(END_OF_TEXT, "")]))
