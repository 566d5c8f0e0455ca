"""A full disk: seen before a byte is written, or told as what it is when it comes in the middle."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from model_core.records.errors import DiskFull


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
    """Whether an error, or one that led to it, says that the disk or somebody's share of it is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__ or error.__context__
    return False
