"""Directories of a data root, atomic file replacement, and full disks.

A `Layout` maps names to directories, below one data root in the service or by the paths of a configuration. Records
hold names, never absolute paths, because mounts differ by host. A reader never sees half of a replaced file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from model_core.config import NAME_PATTERN, ExperimentConfig
from model_core.errors import DiskFull, InvalidParameter


@dataclass(frozen=True)
class Layout:
    """Directories of one data root, or of a configuration without one.

    Attributes:
        exp: Holds one directory a run.
        attention: Holds one directory a run, and in it one an example.
        datasets: Holds one directory a dataset; None when `data_dir` is the dataset's own directory.
        data_dir: The directory with the token files when there is no data root.
        jobs: Holds one directory a job.
        uploads: Holds what datasets may be made from.
        exports: Holds one directory a run, and in it one an exported checkpoint.
    """

    exp: Path
    attention: Path
    datasets: Path | None
    data_dir: Path | None
    jobs: Path | None
    uploads: Path | None = None
    exports: Path | None = None

    @classmethod
    def under(cls, root: Path) -> Layout:
        """Place all directories below one data root.

        Args:
            root: The data root.

        Returns:
            The layout.
        """
        names = ("exp", "attention_outputs", "datasets", "jobs", "uploads", "exports")
        exp, attention, datasets, jobs, uploads, exports = (root / name for name in names)
        return cls(exp, attention, datasets, None, jobs, uploads, exports)

    @classmethod
    def of(cls, config: ExperimentConfig) -> Layout:
        """Use the paths of a configuration, relative to the working directory, with either slash.

        Args:
            config: Its sections `output` and `data`.

        Returns:
            The layout.
        """
        exp, attention = portable(config.output.exp_dir), portable(config.output.attention_dir)
        return cls(exp, attention, None, portable(config.data.data_dir), None)

    def run(self, name: str) -> Path:
        """Return the directory of a run.

        Args:
            name: Name of the run.

        Returns:
            The path.
        """
        return self.exp / checked_name("run", name)

    def attention_of(self, run: str) -> Path:
        """Return the directory of a run's attention records.

        Args:
            run: Name of the run.

        Returns:
            The path.
        """
        return self.attention / checked_name("run", run)

    def export(self, run: str, file: str, sha256: str) -> Path | None:
        """Return the directory of an exported checkpoint.

        Args:
            run: Name of the run.
            file: File name of the checkpoint.
            sha256: Hash of the checkpoint, hex.

        Returns:
            The path; None without a data root.
        """
        if self.exports is None:
            return None
        return self.exports / checked_name("run", run) / f"{Path(file).stem}-{sha256[:8]}"

    def exports_of(self, run: str) -> Path:
        """Return the directory of a run's exports.

        Args:
            run: Name of the run.

        Returns:
            The directory, below a data root; only a data root has a place for exports.
        """
        assert self.exports is not None, "only a data root has a place for exports"
        return self.exports / run

    def dataset(self, name: str) -> Path:
        """Return the directory of a dataset.

        Args:
            name: Name of the dataset.

        Returns:
            The path.
        """
        if self.data_dir is not None:
            return self.data_dir
        assert self.datasets is not None
        return self.datasets / checked_name("dataset", name)


def portable(path: str) -> Path:
    """Parse a path that is written with either slash.

    Args:
        path: The path as text.

    Returns:
        The path.
    """
    return Path(path.replace("\\", "/"))


def checked_name(kind: str, name: str) -> str:
    """Refuse a name that could lead out of its directory.

    Args:
        kind: What the error calls it, such as ``run``.
        name: The name.

    Returns:
        The same name.

    Raises:
        InvalidParameter: Naming the value and the pattern.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidParameter(f"{kind} name {name!r} does not match {NAME_PATTERN}")
    return name


def further_names(name: str) -> Iterator[str]:
    """Generate name-2, name-3 and so on, shortened to the permitted length.

    Args:
        name: The name that is taken.

    Yields:
        Names without end.
    """
    for number in itertools.count(2):
        suffix = f"-{number}"
        yield name[: 63 - len(suffix)] + suffix


def next_free_name(path: Path) -> str:
    """Find the first of name-2, name-3 and so on that does not exist beside a path.

    Args:
        path: Directory of the run or dataset that is taken.

    Returns:
        The free name.
    """
    return next(name for name in further_names(path.name) if not (path.parent / name).exists())


def now() -> str:
    """Format the present time.

    Returns:
        RFC 3339 UTC with milliseconds.
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def replacing(path: Path, *, just_before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Write a file beside its place and move it there when it is complete and on disk.

    Args:
        path: The place. Its directory is created.
        just_before: Called when the bytes are on disk, before the file gets its name.

    Yields:
        The open temporary file.

    Raises:
        DiskFull: No space; what stood at `path` is intact and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if just_before is not None:
            just_before()
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_no_space(error):
            raise DiskFull(path) from None
        raise


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power loss, where the platform can.

    Args:
        path: The directory.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically.

    Args:
        path: File to create or replace.
        text: Its new content.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically.

    Args:
        path: File to create or replace.
        value: Its new content.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        The hash, hex.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashingWriter:
    """A binary file that hashes and counts the bytes written to it.

    Args:
        file: File to write to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write bytes.

        Args:
            data: Bytes, or any object with a buffer.

        Returns:
            Number of bytes written.
        """
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size_bytes += len(view)
        return self._file.write(view)

    def flush(self) -> None:
        """Flush the file below."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Hash of everything written, hex."""
        return self._hash.hexdigest()


def require_space(path: Path, needed_bytes: int) -> None:
    """Refuse to begin what would not fit.

    Args:
        path: Where the file will be; its directory exists. One that stands there stays until the new one is complete.
        needed_bytes: Its size.

    Raises:
        DiskFull: Naming what is needed and what is free.
    """
    free_bytes = shutil.disk_usage(path.parent).free
    if needed_bytes > free_bytes:
        raise DiskFull(path, needed_bytes=needed_bytes, free_bytes=free_bytes)


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk into ours.

    Args:
        path: What is being written.

    Raises:
        DiskFull: No space is left.
    """
    try:
        yield
    except OSError as error:
        if is_no_space(error):
            raise DiskFull(path) from None
        raise


def is_no_space(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means a full disk or quota.

    Args:
        error: The error; None is not one.

    Returns:
        True for a full disk.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False
