"""How the C library keeps memory that was freed: filling fresh pages costs seven times as much as memory in hand.

glibc reads the settings when a process begins, so whoever starts a training gives them: the supervisor to its child,
and a program started by hand to itself, by beginning once more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),  # take no block of a tensor's size from the system by itself
    "MALLOC_TRIM_THRESHOLD_": str(2**33),  # give none back
    "MALLOC_TOP_PAD_": str(2**26),
}


def reexec_with_malloc_env() -> None:
    """Begin this process once more with the settings, where they are missing and heeded; before torch is loaded.

    It stays the same process to all others: process id, files, arguments. Whatever a person has set stays.
    """
    environment = {**SETTINGS, **os.environ}
    if environment == dict(os.environ) or not _is_glibc() or not sys.executable:
        return
    with contextlib.suppress(OSError):  # slower, and no reason not to train
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_glibc() -> bool:
    name = "CS_GNU_LIBC_VERSION"
    return sys.platform == "linux" and name in os.confstr_names and bool(os.confstr(name))
