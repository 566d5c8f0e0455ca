"""Local files as a source: one file, or the files of a folder in the order of their names.

The suffix determines the format: ``.jsonl`` and ``.json`` contain one object per line, ``.parquet`` contains rows, and
all other files are text. In a folder, only ``.txt``, ``.jsonl``, ``.json`` and ``.parquet`` files are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from model_core.config_loader import ConfigWarning
from model_core.data.sources.base import Batch, Document, File, Source
from model_core.data.sources.formats import check_text, jsonl_batches, parquet_batches, text_batches
from model_core.errors import InvalidData
from model_core.storage.files import sha256_of

READABLE = (".txt", ".jsonl", ".json", ".parquet")
_NOT_TEXT = frozenset(".arrow .bz2 .csv .doc .docx .gz .npy .npz .pdf .tsv .xz .zip .zst".split())


def open_files(path: Path, column: str) -> Source:
    """Open a file, or a folder of files, and check what can be checked without reading every document.

    Args:
        path: File or folder, relative to the working directory.
        column: Column with the text, for formats with columns.

    Returns:
        The source.

    Raises:
        InvalidData: A file is missing, empty or malformed; the message names the file and the position.
    """
    paths = _find_files(path)
    files = [File(file, str(file)) for file in paths]
    for file in files:
        _check(file, column)
    size_bytes = sum(file.stat().st_size for file in paths)
    name, revision = local_source_name(path), _revision(paths, path.is_dir())
    facts = {"files": [file.name for file in paths]} if path.is_dir() else {}
    return Source(name, revision, None, size_bytes, _reader(files, column), facts, _ignored_files(path, paths))


def local_source_name(path: Path) -> str:
    """Return the name of a local source in manifests, without directories, because they differ between hosts.

    Args:
        path: File or folder.

    Returns:
        ``file:`` and the last part of the path.
    """
    return f"file:{path.name or path.resolve().name}"


def revision_of_files(path: Path) -> str | None:
    """Hash the files of a local source, and the names of the files in a folder.

    Args:
        path: File or folder.

    Returns:
        The SHA-256, hex; None if the files do not exist.
    """
    if path.is_dir():
        return _revision(paths, True) if (paths := _readable_files(path)) else None
    return _revision([path], False) if path.is_file() else None


def read_batches(file: File, column: str) -> Iterator[Batch]:
    """Read the documents of a file in the format of its suffix.

    Args:
        file: File to read.
        column: Column with the text, for formats with columns.

    Returns:
        Batches in the order of the file.
    """
    match file.path.suffix.lower():
        case ".jsonl" | ".json":
            return jsonl_batches(file, column)
        case ".parquet":
            return parquet_batches(file, column)
    return text_batches(file)


def skip_documents(batches: Iterable[Batch], skip: int) -> Iterator[Document]:
    """Skip the first documents; batches that are skipped completely are not decoded.

    Args:
        batches: Batches in order.
        skip: Number of documents to skip.

    Yields:
        The remaining documents.
    """
    for batch in batches:
        if skip < batch.count:
            yield from islice(batch.documents(), skip, None)
        skip = max(0, skip - batch.count)


def _reader(files: Sequence[File], column: str) -> Callable[[int], Iterator[Document]]:
    """Build `Source.documents` for files that are read one after the other."""
    return lambda skip: skip_documents((batch for file in files for batch in read_batches(file, column)), skip)


def _revision(paths: Sequence[Path], in_folder: bool) -> str:
    hashes = [sha256_of(path) for path in paths]
    if not in_folder:
        return hashes[0]
    lines = (f"{digest} {path.name}\n" for digest, path in zip(hashes, paths, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        return _find_in_folder(path)
    if not path.is_file():
        raise InvalidData(f"there is no file {path.resolve()}; give a file or a folder as file:PATH")
    if path.suffix.lower() in _NOT_TEXT:
        readable = ", ".join(READABLE)
        raise InvalidData(f"{path}: {path.suffix} files cannot be read; give {readable} or a folder of those")
    return [path]


def _find_in_folder(folder: Path) -> list[Path]:
    paths, names = _readable_files(folder), sorted(entry.name for entry in folder.iterdir())
    if not paths:
        existing = ", ".join(names[:5]) or "nothing"
        raise InvalidData(f"{folder} has no file that ends in {', '.join(READABLE)}; it contains: {existing}")
    return paths


def _ignored_files(folder: Path, paths: Sequence[Path]) -> tuple[ConfigWarning, ...]:
    if not folder.is_dir():
        return ()
    others = sorted({entry.name for entry in folder.iterdir()} - {path.name for path in paths})
    named = ", ".join(others[:10]) + (" ..." if len(others) > 10 else "")
    detail = f"only the {', '.join(READABLE)} files of {folder} are read; ignored: {named}"
    return (ConfigWarning("files_left_aside", detail),) if others else ()


def _readable_files(folder: Path) -> list[Path]:
    """Find the files with a readable suffix, in the order of their names."""
    entries = (entry for entry in folder.iterdir() if entry.suffix.lower() in READABLE and entry.is_file())
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _check(file: File, column: str) -> None:
    try:
        if file.path.suffix.lower() not in READABLE[1:]:
            check_text(file)
        is_empty = not any(batch.count for batch in read_batches(file, column))
    except OSError as error:
        raise InvalidData(f"{file.display_name} cannot be read: {error.strerror or error}") from None
    if is_empty:
        raise InvalidData(f"{file.display_name} is empty; a source needs text")
