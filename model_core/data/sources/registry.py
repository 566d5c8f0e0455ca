"""Opens the source that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from model_core.catalog import hub_dataset
from model_core.config import DataConfig
from model_core.config_validation import cross_section_errors
from model_core.data.sources.base import Document, DocumentsBy, OnBadDocument, ReadOptions, Source, SpecialText
from model_core.data.sources.hub_access import Token
from model_core.data.sources.huggingface import open_hub
from model_core.data.sources.local_files import OnBatch, local_source_name, open_files, revision_of_files
from model_core.data.sources.python_docs import documentation, documentation_revision
from model_core.data.sources.special_text import without_special_text
from model_core.data.sources.stories import STORY_COUNT, VERSION, stories
from model_core.errors import InvalidConfig
from model_core.storage.files import portable

_COMMIT = re.compile("[0-9a-f]{40}")


def open_source(
    text: str, *, seed: int, revision: str | None = None, text_column: str = "text", token: Token | None = None,
    documents: DocumentsBy = "auto", special_text: SpecialText = "keep", on_bad_document: OnBadDocument = "skip",
    on_batch: OnBatch = lambda _: None,
) -> Source:  # fmt: skip
    """Open a source and check what can be checked without reading every document.

    Args:
        text: Source as in `catalog.SOURCE_SYNTAX`; paths are relative to the working directory.
        seed: Seed of generated text.
        revision: Commit, branch or tag of a hub dataset.
        text_column: Column with the text, for sources with columns.
        token: Access token for hub datasets with restricted access.
        documents: What separates the documents of a text file.
        special_text: What happens to the text ``<|endoftext|>`` inside a document.
        on_bad_document: Whether a document that cannot be read ends the preparation.
        on_batch: Called with the number of documents of each batch while local files are looked through.

    Returns:
        The source.

    Raises:
        InvalidConfig: The source does not exist, or has no revisions or columns to choose.
        InvalidData: A file is missing, empty or malformed, or has too many bad documents; the message names the
            file and the position. For the hub, whose files are downloaded one by one, iterating raises this.
        ModelCoreError: One of the errors of `hub_access`, if the hub refuses access to the dataset.
        DiskFull: The files of a hub dataset do not fit in the cache of the hub's library.
    """
    data = DataConfig(source=text, revision=revision, text_column=text_column, documents=documents)
    if problems := tuple(cross_section_errors({"data": data})):
        raise InvalidConfig(problems)
    options = ReadOptions(text_column, documents, on_bad_document)
    return without_special_text(_open(text, seed, revision, options, token, on_batch), special_text)


def revision_of(text: str, *, seed: int, revision: str | None = None) -> str | None:
    """Return `Source.revision` if it is known without opening the source.

    Args:
        text: Source as in the configuration.
        seed: Seed of generated text.
        revision: Requested revision.

    Returns:
        The revision; None if it is known only after opening the source.
    """
    if text == "stories":
        return _stories_revision(seed)
    if hub_dataset(text):
        return revision if revision is not None and _COMMIT.fullmatch(revision) else None
    return revision_of_files(portable(text[5:])) if text.startswith("file:") else None


def uses_seed(text: str) -> bool:
    """Return whether the documents of a source depend on the seed.

    Args:
        text: Source as in the configuration.

    Returns:
        True for a source that generates its documents.
    """
    return text == "stories"


def source_name(text: str) -> str:
    """Return the name of a source in manifests.

    Args:
        text: Source as in the configuration.

    Returns:
        The name, without the directories of a file.
    """
    return local_source_name(portable(text[5:])) if text.startswith("file:") else text


def _open(
    text: str, seed: int, revision: str | None, options: ReadOptions, token: Token | None, on_batch: OnBatch
) -> Source:
    if text == "stories":
        return Source(text, _stories_revision(seed), STORY_COUNT, None, _documents(lambda: stories(seed)))
    if text == "pydoc":
        documents = documentation()
        text_bytes = sum(len(document.encode()) for document in documents)
        return Source(text, documentation_revision(), len(documents), text_bytes, _documents(lambda: documents))
    if dataset := hub_dataset(text):
        return open_hub(text, dataset, revision=revision, options=options, token=token)
    return open_files(portable(text.removeprefix("file:")), options, on_batch)


def _stories_revision(seed: int) -> str:
    return f"{VERSION}, seed {seed}"


def _documents(texts: Callable[[], Iterable[str]]) -> Callable[[int], Iterator[Document]]:
    return lambda skip: map(Document, islice(texts(), skip, None))
