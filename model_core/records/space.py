"""Whether the disk has room for a file, asked before a byte of it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from model_core.errors import DiskFull


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
