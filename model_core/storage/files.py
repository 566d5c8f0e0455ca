"""Layout of a data root, atomic file replacement, and errors about full disks.

A `Layout` maps names to directories: below one data root in the service, by the paths of the configuration otherwise.
Files store names and never absolute paths, because mounts differ by host. A reader never sees a partly written file.
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

from model_core.config import NAME_PATTERN, ExperimentConfig, describe_name, nearest_name
from model_core.errors import DiskFull, InvalidData, InvalidParameter

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # begins the file that Git has in place of a large one
_SENT_MODELS = ".models"  # no name of a dataset, whose uploads are beside it

_LEAST_FREE_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """Directories of one data root, or of a configuration without one.

    Attributes:
        exp: Contains one directory per run.
        attention: Contains one directory per run, each with one directory per example.
        datasets: Contains one directory per dataset; None without a data root.
        data_dir: Directory of the token files; None with a data root.
        jobs: Contains one directory per job; None without a data root.
        uploads: Contains the files from which datasets can be prepared; None without a data root.
        exports: Contains one directory per run, each with one directory per exported checkpoint; None without a data
            root.
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
            config: Configuration whose sections `output` and `data` contain the paths.

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
        """Return the directory of a run's exports; requires a data root.

        Args:
            run: Name of the run.

        Returns:
            The path.
        """
        assert self.exports is not None, "exports need a data root"
        return self.exports / run

    def sent_models(self, run: str) -> Path:
        """Return the directory of the models that clients sent to become a run; requires a data root.

        Args:
            run: Name of the run.

        Returns:
            The path.
        """
        assert self.uploads is not None, "uploads need a data root"
        return self.uploads / _SENT_MODELS / checked_name("run", run)

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
    """Parse a path whose separators are slashes or backslashes.

    Args:
        path: Text of the path.

    Returns:
        The path.
    """
    return Path(path.replace("\\", "/"))


def checked_name(kind: str, name: str) -> str:
    """Check a name, so that a path built from it stays in its directory.

    Args:
        kind: Kind of the named thing for the error message, for example ``run``.
        name: The name.

    Returns:
        The same name.

    Raises:
        InvalidParameter: It is not a name; the message has one that is.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        near = "".join(f"; {other!r} would be right" for other in nearest_name(name))
        raise InvalidParameter(f"{kind} {name[:200]!r} is not {describe_name()}{near}")
    return name


def further_names(name: str) -> Iterator[str]:
    """Generate name-2, name-3 and so on, shortened to the permitted length.

    Args:
        name: The name that is taken.

    Yields:
        An infinite sequence of names.
    """
    for number in itertools.count(2):
        suffix = f"-{number}"
        yield name[: 63 - len(suffix)] + suffix


def next_free_name(path: Path) -> str:
    """Find the first of name-2, name-3 and so on that does not exist in the directory of a path.

    Args:
        path: Directory of the run or dataset that has the name.

    Returns:
        The free name.
    """
    return next(name for name in further_names(path.name) if not (path.parent / name).exists())


def now() -> str:
    """Format the current time.

    Returns:
        RFC 3339 UTC with milliseconds.
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.contextmanager
def atomic_write(path: Path, *, before_rename: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Write a temporary file, flush it to disk, and rename it to its final path.

    Args:
        path: Path of the file to create or replace. Its directory is created.
        before_rename: Called when the content is on disk, before the rename.

    Yields:
        The open temporary file.

    Raises:
        DiskFull: No space is left; the previous file is intact and the temporary file is deleted.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_no_space(error):
            raise DiskFull(path) from None
        raise


def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to disk, so that renames survive a power loss. Does nothing on Windows.

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
    with atomic_write(path) as file:
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


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a pointer of Git LFS, the small text that a clone without git-lfs has in place of a large file.

    Args:
        path: A file that exists.

    Raises:
        InvalidData: The file is a pointer.
    """
    if is_lfs_pointer(path):
        advice = "run `git lfs pull` in its folder, or download the file itself"
        raise InvalidData(f"{path.name} is a Git LFS pointer, not the content of the file; {advice}")


def is_lfs_pointer(path: Path) -> bool:
    """Check whether a file is a pointer of Git LFS.

    Args:
        path: A file that exists.

    Returns:
        Whether its first line is that of a pointer.
    """
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


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
        """Flush the underlying file."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Hash of all bytes written so far, hex."""
        return self._hash.hexdigest()


def require_space(path: Path, needed_bytes: int) -> None:
    """Check that a file fits on its disk. A file that it replaces exists until the new one is complete.

    Args:
        path: Path of the file; its directory exists.
        needed_bytes: Size of the file.

    Raises:
        DiskFull: The disk has less free space.
    """
    free_bytes = shutil.disk_usage(path.parent).free
    if needed_bytes > free_bytes:
        raise DiskFull(path, needed_bytes=needed_bytes, free_bytes=free_bytes)


def is_disk_full(directory: Path) -> bool:
    """Return whether a disk has no space left for even a small file.

    Args:
        directory: An existing directory on it.

    Returns:
        True if less than 1 MiB is free.
    """
    return shutil.disk_usage(directory).free < _LEAST_FREE_BYTES


@contextlib.contextmanager
def translate_disk_full(path: Path) -> Iterator[None]:
    """Raise `DiskFull` instead of the `OSError` about a full disk.

    Args:
        path: File that the body writes.

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
    """Return whether an error, or one of its causes, is about a full disk or quota.

    Args:
        error: The error; None counts as no error.

    Returns:
        True for a full disk or quota.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False
