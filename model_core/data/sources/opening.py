"""From the text of a configuration to a source: the one door."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from model_core.config import DataConfig
from model_core.data.sources.access import Token
from model_core.data.sources.source import Document, Source
from model_core.data.sources.stories import STORY_COUNT, VERSION, stories
from model_core.data.sources.text import read_text
from model_core.errors import InvalidConfig, InvalidData, NotAvailable
from model_core.records.files import portable, sha256_of
from model_core.rules import disagreements

_STRUCTURED = frozenset({".csv", ".gz", ".json", ".jsonl", ".npy", ".parquet", ".tsv", ".zip"})


def open_source(
    text: str,
    *,
    seed: int,
    revision: str | None = None,
    text_column: str = "text",
    token: Token | None = None,  # noqa: ARG001 - for sources of the hub, which follow
) -> Source:
    """Find a source and check it.

    Args:
        text: ``stories`` or ``file:PATH``; a relative path is one of the working directory.
        seed: Of generated text.
        revision: Commit, branch or tag of a dataset of the hub.
        text_column: Which column holds the text, where there are columns.
        token: For datasets of the hub that not everybody may read.

    Raises:
        InvalidConfig: There is no such source.
        NotAvailable: This version cannot read it.
        InvalidData: The file is missing, empty, or not UTF-8 text; with file and line.
    """
    asked = DataConfig(source=text, revision=revision, text_column=text_column)
    problems = tuple(disagreements({"data": asked}))
    if problems:
        raise (NotAvailable if problems[0].code == "not_available" else InvalidConfig)(problems)
    return _open_stories(seed) if text == "stories" else _open_file(portable(text.removeprefix("file:")))


def _open_stories(seed: int) -> Source:
    def read(skip: int) -> Iterator[Document]:
        return islice((Document(story) for story in stories(seed)), skip, None)

    return Source("stories", _stories_revision(seed), STORY_COUNT, None, read)


def _open_file(path: Path) -> Source:
    def read(skip: int) -> Iterator[Document]:
        return islice((Document(text) for text in read_text(path)), skip, None)

    _check_file(path)
    count = sum(1 for _ in read(0))
    if count == 0:
        raise InvalidData(f"{path} is empty; a source needs text")
    return Source(source_name(f"file:{path}"), sha256_of(path), count, path.stat().st_size, read)


def revision_of(text: str, *, seed: int, revision: str | None = None) -> str | None:  # noqa: ARG001 - likewise
    """What `Source.revision` would be, if that can be told without reading documents; else None."""
    if text == "stories":
        return _stories_revision(seed)
    path = portable(text.removeprefix("file:"))
    return sha256_of(path) if path.is_file() else None


def _stories_revision(seed: int) -> str:
    return f"{VERSION}, seed {seed}"


def source_name(text: str) -> str:
    """What a record calls a source: no directories, because they differ by host."""
    return f"file:{portable(text[5:]).name}" if text.startswith("file:") else text


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InvalidData(f"{path} is a folder; give one UTF-8 text file")
    if not path.is_file():
        raise InvalidData(f"there is no file {path.resolve()}; give a UTF-8 text file as file:PATH")
    if path.suffix.lower() in _STRUCTURED:
        raise InvalidData(f"{path}: {path.suffix} files cannot be read in this version; give a UTF-8 text file (.txt)")
