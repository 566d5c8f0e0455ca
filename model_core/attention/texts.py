"""Texts whose attention was captured: what a run's directory holds of each, the lock of a capture, and removal.

A text is a test example or what a client sent; the latter is stored whole, so that it can be captured under another
checkpoint, or longer.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from model_core.attention.record import (
    MANIFEST,
    TEXT,
    TOKENS,
    USED,
    AttentionRecord,
    further_directories,
    is_example,
    list_records,
    remove_record,
    text_directory,
)
from model_core.errors import RunBusy
from model_core.storage.files import Layout, read_json, sync_directory, write_json, write_text

_ID = re.compile(r"0|[1-9][0-9]{0,11}|t_[0-9a-f]{8,64}")
_LOCKS, _N_LOCKS = ".locks", 64  # shared by the texts of a run: a lock file of its own would stay when a text goes
_DELETE_TIMEOUT_S = 30.0  # for a capture to end


@dataclass(frozen=True)
class CapturedText:
    """Everything captured of a text.

    Attributes:
        id: Number of a test example, or the id of a text.
        records: Its records, at least one.
    """

    id: str
    records: Sequence[AttentionRecord]

    @property
    def longest(self) -> AttentionRecord:
        """The record with the most tokens."""
        return max(self.records, key=lambda record: record.stored_tokens)


def list_ids(layout: Layout, run: str) -> list[str]:
    """List the texts of a run.

    Args:
        layout: Paths of the data root.
        run: Name of the run.

    Returns:
        Ids of examples by number, then those of texts in alphabetical order. A directory may hold no record.
    """
    home = layout.attention_of(run)
    found = [path.name for path in home.iterdir() if _ID.fullmatch(path.name)] if home.is_dir() else []
    return sorted(found, key=order_of)


def order_of(id: str) -> tuple[bool, int, str]:  # noqa: A002 - the name that clients see
    """Return the place of an id in `list_ids`.

    Args:
        id: The id.

    Returns:
        A key for sorting.
    """
    return (not is_example(id), len(id), id)


def open_text(layout: Layout, run: str, id: str) -> CapturedText | None:  # noqa: A002 - the name that clients see
    """Open everything captured of a text.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        id: Number of a test example, or the id of a text.

    Returns:
        The text; None if it has no record.
    """
    directory = text_directory(layout, run, id)
    records = tuple(list_records(directory)) if directory.is_dir() else ()
    return CapturedText(id, records) if records else None


def save_text(directory: Path, text: str) -> None:
    """Store the whole of a text.

    Args:
        directory: The text's directory.
        text: The text.
    """
    write_text(directory / TEXT, text)


def load_text(directory: Path) -> str | None:
    """Load the text that `save_text` stored.

    Args:
        directory: The text's directory.

    Returns:
        The text; None if none was stored.
    """
    file = directory / TEXT
    return file.read_bytes().decode() if file.is_file() else None


def save_tokens(directory: Path, ids: Sequence[int]) -> None:
    """Store the whole of a text that was sent as token ids.

    Args:
        directory: The text's directory.
        ids: The token ids.
    """
    write_json(directory / TOKENS, list(ids))


def load_tokens(directory: Path) -> list[int] | None:
    """Load the token ids that `save_tokens` stored.

    Args:
        directory: The text's directory.

    Returns:
        The ids; None if none were stored.
    """
    file = directory / TOKENS
    ids: list[int] | None = read_json(file) if file.is_file() else None
    return ids


@contextlib.contextmanager
def text_lock(directory: Path, *, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock of a text: one thread of all processes captures or removes it at a time.

    Args:
        directory: The text's directory, which need not exist.
        timeout_s: Longest wait; below 0 without end.

    Raises:
        filelock.Timeout: Another thread or process holds it.
    """
    locks = directory.parent / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    number = zlib.crc32(directory.name.encode()) % _N_LOCKS
    with FileLock(locks / f"{number:02d}", timeout=timeout_s):
        yield


def drop_other_lengths(directory: Path, record: AttentionRecord) -> None:
    """Remove the other records of a checkpoint, which earlier versions kept for each length.

    Args:
        directory: The text's directory.
        record: The record that stays.
    """
    for other in list(list_records(directory)):
        if other.path != record.path and other.manifest["sha256"] == record.manifest["sha256"]:
            remove_from_text(other.path, directory)


def remove_from_text(path: Path, directory: Path) -> None:
    """Remove a record, and the whole text if it was the last one.

    Args:
        path: Directory of the record.
        directory: The text's directory.
    """
    remove_record(path)
    if path != directory:
        shutil.rmtree(path, ignore_errors=True)
    if not (directory / MANIFEST).exists() and not further_directories(directory):
        shutil.rmtree(directory, ignore_errors=True)


def remove_unrecorded(directory: Path) -> None:
    """Remove what a failed capture left; a text goes if it has no record.

    Args:
        directory: The text's directory.
    """
    if not directory.is_dir():
        return
    for path in (directory, *further_directories(directory)):
        if not (path / MANIFEST).exists():
            remove_from_text(path, directory)


def delete_text(layout: Layout, run: str, id: str) -> bool:  # noqa: A002 - the name that clients see
    """Delete everything captured of a text, and the text.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        id: Number of a test example, or the id of a text.

    Returns:
        Whether there was anything.

    Raises:
        RunBusy: It is being captured.
    """
    directory = text_directory(layout, run, id)
    if not directory.is_dir():
        return False
    try:
        with text_lock(directory, timeout_s=_DELETE_TIMEOUT_S):
            hidden = directory.with_name(f".{id}.removed")
            shutil.rmtree(hidden, ignore_errors=True)  # of a deletion that was interrupted
            directory.rename(hidden)
            sync_directory(directory.parent)
            shutil.rmtree(hidden, ignore_errors=True)
    except FileNotFoundError:  # deleted by another request
        return False
    except Timeout:
        raise RunBusy(run, f"is used: attention of {id!r} is being captured; try again in a moment") from None
    return True


def size_of(path: Path) -> int:
    """Count the bytes of a record.

    Args:
        path: Directory of the record.

    Returns:
        Bytes of its files with the pictures, without those of further checkpoints.
    """
    total = 0
    further = {other.name for other in further_directories(path)} if path.is_dir() else set()
    for child in path.iterdir():
        if child.name not in further:
            total += tree_bytes(child)
    return total


def tree_bytes(path: Path) -> int:
    """Count the bytes of a file, or of all files below a directory.

    Args:
        path: File or directory; what vanishes meanwhile counts nothing.

    Returns:
        Their sizes.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir():
            return sum(map(tree_bytes, list(path.iterdir())))
        return path.stat().st_size
    return 0


def last_used(path: Path) -> float:
    """Return when a record was last looked at.

    Args:
        path: Directory of the record.

    Returns:
        Seconds since the epoch; for an older record when it was captured, 0 for none.
    """
    for name in (USED, MANIFEST):
        with contextlib.suppress(FileNotFoundError):
            return (path / name).stat().st_mtime
    return 0.0
