"""Finds the source that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from model_core.catalog import hub_dataset
from model_core.config import DataConfig
from model_core.config_validation import cross_section_errors
from model_core.data.sources.base import Document, Source
from model_core.data.sources.hub_access import Token
from model_core.data.sources.huggingface import open_hub
from model_core.data.sources.local_files import name_of, open_files, revision_of_files
from model_core.data.sources.python_docs import documentation, documentation_revision
from model_core.data.sources.stories import STORY_COUNT, VERSION, stories
from model_core.errors import InvalidConfig
from model_core.storage.files import portable

_COMMIT = re.compile("[0-9a-f]{40}")


def open_source(
    text: str, *, seed: int, revision: str | None = None, text_column: str = "text", token: Token | None = None
) -> Source:
    """Find a source and check what can be checked without reading every document.

    Args:
        text: One of `catalog.SOURCE_SYNTAX`; a relative path is one of the working directory.
        seed: Of generated text.
        revision: Commit, branch or tag of a dataset of the hub.
        text_column: Which column holds the text, where there are columns.
        token: For datasets of the hub that not everybody may read.

    Returns:
        The source.

    Raises:
        InvalidConfig: There is no such source, or it has no revisions or columns to choose.
        InvalidData: A file is missing, empty, or not what it should be; with file and place. What lies deep
            in a file is found by reading, so iterating raises this too.
        ModelCoreError: With one of the codes of `refusal`, when the hub does not give a dataset.
        DiskFull: What the hub gives would not fit in the cache of its library.
    """
    problems = tuple(
        cross_section_errors({"data": DataConfig(source=text, revision=revision, text_column=text_column)})
    )
    if problems:
        raise InvalidConfig(problems)
    if text == "stories":
        return Source(text, _stories_revision(seed), STORY_COUNT, None, _again(lambda: stories(seed)))
    if text == "pydoc":
        documents = documentation()
        text_bytes = sum(len(document.encode()) for document in documents)
        return Source(text, documentation_revision(), len(documents), text_bytes, _again(lambda: documents))
    if dataset := hub_dataset(text):
        return open_hub(text, dataset, revision=revision, column=text_column, token=token)
    return open_files(portable(text.removeprefix("file:")), text_column)


def revision_of(text: str, *, seed: int, revision: str | None = None) -> str | None:
    """Return `Source.revision` if it is known quickly and without a network.

    Args:
        text: Source, as the configuration writes it.
        seed: Seed of generated text.
        revision: Revision that was asked for.

    Returns:
        The revision; None if only opening the source would show it.
    """
    if text == "stories":
        return _stories_revision(seed)
    if hub_dataset(text):
        return revision if revision is not None and _COMMIT.fullmatch(revision) else None
    return revision_of_files(portable(text[5:])) if text.startswith("file:") else None


def uses_seed(text: str) -> bool:
    """Return whether the documents of a source depend on the seed.

    Args:
        text: The source, as the configuration writes it.

    Returns:
        True for a source that generates its documents.
    """
    return text == "stories"


def source_name(text: str) -> str:
    """Return the name of a source in records.

    Args:
        text: Source, as the configuration writes it.

    Returns:
        The name, without the directories of a file.
    """
    return name_of(portable(text[5:])) if text.startswith("file:") else text


def _stories_revision(seed: int) -> str:
    return f"{VERSION}, seed {seed}"


def _again(texts: Callable[[], Iterable[str]]) -> Callable[[int], Iterator[Document]]:
    return lambda skip: map(Document, islice(texts(), skip, None))
