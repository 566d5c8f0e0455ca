"""Articles out of lines: some corpora give a row a line, with the headings as ``= Title =``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from model_core.data.sources.source import Document

_TITLE = re.compile(r"\s*= (?!= ).+(?<! =) =\s*")


def articles(lines: Iterable[Document]) -> Iterator[Document]:
    """Join lines up to the next heading of the first rank; lines before the first are an article too."""
    article: list[str] = []
    for line in lines:
        if article and _TITLE.fullmatch(line.text):
            yield Document("".join(article).strip())
            article = []
        article.append(line.text if line.text.endswith("\n") else line.text + "\n")
    if article:
        yield Document("".join(article).strip())
