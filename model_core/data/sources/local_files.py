"""Local files as a source: one file, or the files of a folder and its subfolders in the order of their paths.

`file_names` has the endings that are read. In a folder, hidden files and files with other endings are left aside. All
files are looked through first, so that what cannot be read is found before tokens are made.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_core.config_loader import ConfigWarning
from model_core.data.sources.base import (
    MAX_DOCUMENT,
    BadDocumentLog,
    Document,
    File,
    ReadOptions,
    Source,
)
from model_core.data.sources.file_names import (
    READABLE,
    compression_of,
    entries_below,
    files_below,
    is_known_binary,
    shown_path,
)
from model_core.data.sources.formats import Survey, read_batches, skip_documents, survey, with_separator
from model_core.errors import InvalidData
from model_core.storage.files import sha256_of

FEW_DOCUMENTS, LONG_DOCUMENT, PIECE = 10, 16_384, 4096  # fewer are too few for the splits; lengths in characters
_COMPRESSION = 3  # approximate ratio of a text to its compressed file
_MAX_LISTED = 100  # files of a source whose documents are listed one by one

OnBatch = Callable[[int], None]


def open_files(path: Path, options: ReadOptions, on_batch: OnBatch = lambda _: None) -> Source:
    """Open a file, or a folder of files, and look through every document.

    Args:
        path: File or folder, relative to the working directory.
        options: How documents are read.
        on_batch: Called with the number of documents of each batch that was looked through; may raise an error.

    Returns:
        The source.

    Raises:
        InvalidData: A file is missing or malformed, or all are empty; the message names the file and the position.
        BadDocuments: Too many documents cannot be read.
    """
    paths, warnings = _find_files(path), list[ConfigWarning]()
    files = [File(file, shown_path(file, path) if path.is_dir() else str(file)) for file in paths]
    options, surveys, log = _look_through(files, options, on_batch)
    filled = [(file, found) for file, found in zip(files, surveys, strict=True) if found.documents]
    if not filled:
        raise InvalidData(f"{files[0].display_name if len(files) == 1 else path} is empty; a source needs text")
    if path.is_dir():
        warnings += _left_aside(path, paths)
        warnings += _empty_files([file for file, found in zip(files, surveys, strict=True) if not found.documents])
    sizes = {file: file.stat().st_size * (_COMPRESSION if compression_of(file.name) else 1) for file in paths}
    facts = {"files": [file.display_name for file in files]} if path.is_dir() else {}
    return Source(
        local_source_name(path), _revision(paths, path), sum(found.documents for found in surveys),
        sum(sizes.values()), _reader(filled, options), facts, tuple(warnings), lambda: _reading(filled, options, log),
    )  # fmt: skip


def local_source_name(path: Path) -> str:
    """Return the name of a local source in manifests, without directories, because they differ between hosts.

    Args:
        path: File or folder.

    Returns:
        ``file:`` and the last part of the path.
    """
    return f"file:{path.name or path.resolve().name}"


def revision_of_files(path: Path) -> str | None:
    """Hash the files of a local source, and the paths of the files in a folder.

    Args:
        path: File or folder.

    Returns:
        The SHA-256, hex; None if the files do not exist.
    """
    if path.is_dir():
        return _revision(paths, path) if (paths := files_below(path)) else None
    return _revision([path], path) if path.is_file() else None


def _look_through(
    files: Sequence[File], options: ReadOptions, on_batch: OnBatch
) -> tuple[ReadOptions, list[Survey], BadDocumentLog]:
    """Survey every file; a few long documents, such as a book on one line, are read in pieces."""
    log = BadDocumentLog(options.on_bad_document)
    surveys = [_survey(file, options, log, on_batch) for file in files]
    documents, longest = sum(found.documents for found in surveys), max(found.longest for found in surveys)
    is_whole = options.documents != "auto" or options.piece != MAX_DOCUMENT
    if is_whole or documents >= FEW_DOCUMENTS or longest <= LONG_DOCUMENT:
        log.check()
        return options, surveys, log
    return _look_through(files, replace(options, piece=PIECE), on_batch)


def _survey(file: File, options: ReadOptions, log: BadDocumentLog, on_batch: OnBatch) -> Survey:
    try:
        return survey(file, options, log, on_batch)
    except OSError as error:
        raise InvalidData(f"{file.display_name} cannot be read: {error.strerror or error}") from None


def _reader(files: Sequence[tuple[File, Survey]], options: ReadOptions) -> Callable[[int], Iterator[Document]]:
    """Build `Source.documents` for files that are read one after the other."""
    return lambda skip: skip_documents(
        (batch for file, found in files for batch in read_batches(file, with_separator(options, found.read_as))), skip
    )


def _reading(files: Sequence[tuple[File, Survey]], options: ReadOptions, log: BadDocumentLog) -> dict[str, Any]:
    kinds = ["pieces" if options.piece == PIECE else found.read_as for _, found in files]
    listed = [
        {"file": file.display_name, "read_as": kind, "documents": found.documents}
        for kind, (file, found) in zip(kinds, files, strict=True)
    ]
    return {
        "read_as": kinds[0] if len(set(kinds)) == 1 else "mixed",
        "files": listed[:_MAX_LISTED],
        "files_by": dict(Counter(kinds)),
        "bad_documents": log.summary(),
    }


def _revision(paths: Sequence[Path], source: Path) -> str:
    hashes = [sha256_of(path) for path in paths]
    if not source.is_dir():
        return hashes[0]
    lines = (f"{digest} {path.relative_to(source).as_posix()}\n" for digest, path in zip(hashes, paths, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        return _find_in_folder(path)
    if not path.is_file():
        raise InvalidData(f"there is no file {path.resolve()}; give a file or a folder as file:PATH")
    if is_known_binary(path.name):
        raise InvalidData(f"{path}: {path.suffix} files cannot be read; give {READABLE}, or a folder of those")
    return [path]


def _find_in_folder(folder: Path) -> list[Path]:
    paths, names = files_below(folder), sorted(entry.name for entry in folder.iterdir())
    if not paths:
        existing = ", ".join(names[:5]) or "nothing"
        raise InvalidData(f"{folder} has no file with a readable ending ({READABLE}); it contains: {existing}")
    return paths


def _left_aside(folder: Path, paths: Sequence[Path]) -> Iterator[ConfigWarning]:
    others = [shown_path(path, folder) for path in entries_below(folder) if path not in set(paths)]
    if others:
        detail = f"hidden files, and files with other endings than {READABLE}, are left aside: {_first(others)}"
        yield ConfigWarning("files_left_aside", detail)


def _empty_files(files: Sequence[File]) -> Iterator[ConfigWarning]:
    if files:
        yield ConfigWarning("empty_files", f"without text: {_first([file.display_name for file in files])}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
