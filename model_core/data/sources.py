"""Where documents come from. A source can be read more than once, and gives the same documents each time.

Text files: blank lines, or lines that hold only ``<|endoftext|>``, stand between documents; a file that has
neither holds one document a line. White space around a document is dropped, and line ends become newlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_core.config import DataConfig
from model_core.data.stories import STORY_COUNT, VERSION, stories
from model_core.errors import InvalidConfig, InvalidData, NotAvailable
from model_core.records.files import portable, sha256_of
from model_core.rules import disagreements

_SEPARATORS = frozenset({"", "<|endoftext|>"})
_STRUCTURED = frozenset({".csv", ".gz", ".json", ".jsonl", ".npy", ".parquet", ".tsv", ".zip"})


@dataclass(frozen=True)
class Source:
    """A corpus.

    Attributes:
        name: As the configuration writes it, without the directories of a file.
        revision: Changes when the documents do.
        count: Documents it has.
        documents: Starts reading from the first document.
    """

    name: str
    revision: str
    count: int
    documents: Callable[[], Iterator[str]]


def open_source(source: str, seed: int) -> Source:
    """Find a source and check it.

    Args:
        source: ``stories`` or ``file:PATH``; a relative path is one of the working directory.
        seed: Of generated text.

    Raises:
        InvalidConfig: There is no such source.
        NotAvailable: This version cannot read it.
        InvalidData: The file is missing, empty, or not UTF-8 text; with file and line.
    """
    problems = tuple(disagreements({"data": DataConfig(source=source)}))
    if problems:
        raise (NotAvailable if problems[0].code == "not_available" else InvalidConfig)(problems)
    if source == "stories":
        return Source(source, _stories_revision(seed), STORY_COUNT, lambda: stories(seed))
    path = portable(source.removeprefix("file:"))
    _check_file(path)
    count = sum(1 for _ in read_text(path))
    if count == 0:
        raise InvalidData(f"{path} is empty; a source needs text")
    return Source(source_name(source), sha256_of(path), count, lambda: read_text(path))


def revision_of(source: str, seed: int) -> str | None:
    """What `Source.revision` would be, without reading documents; None for a file that is not here any more."""
    if source == "stories":
        return _stories_revision(seed)
    path = portable(source.removeprefix("file:"))
    return sha256_of(path) if path.is_file() else None


def _stories_revision(seed: int) -> str:
    return f"{VERSION}, seed {seed}"


def source_name(source: str) -> str:
    """What a record calls a source: no directories, because they differ by host."""
    return f"file:{portable(source[5:]).name}" if source.startswith("file:") else source


def read_text(path: Path) -> Iterator[str]:
    """Documents of a text file.

    Raises:
        InvalidData: Naming the line that is not text.
    """
    by_line = not _has_separators(path)
    lines: list[str] = []
    for line in _lines(path):
        separates = line.strip() in _SEPARATORS
        if not separates:
            lines.append(line)
        if lines and (separates or by_line):
            yield "\n".join(lines).strip()
            lines = []
    if lines:
        yield "\n".join(lines).strip()


def _has_separators(path: Path) -> bool:
    """Whether anything stands between two lines of text."""
    seen_text = seen_separator = False
    for line in _lines(path):
        if line.strip() in _SEPARATORS:
            seen_separator = seen_text
        elif seen_separator:
            return True
        else:
            seen_text = True
    return False


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise InvalidData(f"{path}, line {number}: a zero byte, so this is a binary file; give UTF-8 text")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} at position {error.start}"
                raise InvalidData(f"{path}, line {number}: not UTF-8 ({byte}); convert the file to UTF-8") from None
            yield line.rstrip("\r\n")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InvalidData(f"{path} is a folder; give one UTF-8 text file")
    if not path.is_file():
        raise InvalidData(f"there is no file {path.resolve()}; give a UTF-8 text file as file:PATH")
    if path.suffix.lower() in _STRUCTURED:
        raise InvalidData(f"{path}: {path.suffix} files cannot be read in this version; give a UTF-8 text file (.txt)")
