"""Makes glibc keep freed memory: a page fault on fresh memory costs seven times as much as reused memory.

glibc reads the settings when a process starts. So the supervisor sets them for its child, and a program started by hand
re-executes itself with them. See mallopt(3).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),  # no mmap of its own for a tensor
    "MALLOC_TRIM_THRESHOLD_": str(2**33),  # return nothing to the system
    "MALLOC_TOP_PAD_": str(2**26),
}


def reexec_with_malloc_env() -> None:
    """Re-execute this process with the settings, if they are missing and the C library is glibc.

    Call it before torch is loaded. Process id, open files and arguments stay, and so does what the user has set.
    """
    environment = {**SETTINGS, **os.environ}
    if environment == dict(os.environ) or not _is_glibc() or not sys.executable:
        return
    with contextlib.suppress(OSError):  # training without them is only slower
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_glibc() -> bool:
    name = "CS_GNU_LIBC_VERSION"
    return sys.platform == "linux" and name in os.confstr_names and bool(os.confstr(name))
