"""CPU cores of a process, and the environment variables that its C library and OpenMP read once, when they are loaded.

- glibc keeps freed memory: a page fault on fresh memory costs seven times as much as reused memory. See mallopt(3).
- OpenMP's threads spin for a bounded time while they wait for each other. Without a bound they take the cores from
  everything else (docs/performance.md has figures).

So the supervisor sets them for its child, and a program started by hand re-executes itself with them. What a person has
set stays. A process that serves many small requests wants the opposite of the first: it gives freed memory back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")

ALLOCATOR: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),  # no mmap of its own for a tensor
    "MALLOC_TRIM_THRESHOLD_": str(2**33),  # return nothing to the system
    "MALLOC_TOP_PAD_": str(2**26),
}
ARENAS = "MALLOC_ARENA_MAX"
_M_ARENA_MAX, _SERVER_ARENAS = -8, 2  # of malloc.h; threads of a server share so many heaps
SPIN_COUNT = "GOMP_SPINCOUNT"
SPINS = 10_000
THREADS = "OMP_NUM_THREADS"
OPENMP = (THREADS, "OMP_WAIT_POLICY", SPIN_COUNT)  # what a person may set, and every child inherits
TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for its processes


def usable_cores() -> int:
    """Count the CPU cores that this process may use.

    Returns:
        The count, at least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def requested_threads(environment: Mapping[str, str]) -> int | None:
    """Read how many threads the environment asks for.

    Args:
        environment: Variables of the process.

    Returns:
        The first number of OMP_NUM_THREADS; None without a valid one, and for the 1 that torchrun sets by itself.
    """
    text = environment.get(THREADS, "").partition(",")[0].strip()
    if not (text.isascii() and text.isdigit() and int(text)) or (text == "1" and TORCHRUN in environment):
        return None
    return int(text)


def spin_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Bound how long OpenMP's threads spin.

    Args:
        environment: Variables of the process.

    Returns:
        The variable to add; none if a person has decided how threads wait.
    """
    is_decided = environment.get(SPIN_COUNT) or environment.get("OMP_WAIT_POLICY")
    return {} if is_decided else {SPIN_COUNT: str(SPINS)}


def startup_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose the variables with which a training starts.

    Args:
        environment: Variables that the process would have otherwise.

    Returns:
        The variables to add.
    """
    kept = {name: value for name, value in ALLOCATOR.items() if name not in environment}
    return kept | spin_variables(environment)


def reexec_with_startup_variables() -> None:
    """Re-execute this process with the variables that it lacks, if the C library is glibc.

    Call it before torch is loaded. Process id, open files and arguments stay.
    """
    missing = startup_variables(os.environ)
    if not missing or not _is_glibc() or not sys.executable:
        return
    with contextlib.suppress(OSError):  # training without them is only slower
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def run_in_new_thread(call: Callable[[], _Result]) -> _Result:
    """Run tensor operations in a thread that ends with them, and OpenMP's threads with it.

    libgomp keeps a team of threads for every thread that ran a parallel region. When all teams together have more
    threads than the CPU has cores, they hardly spin any more, even if only one team works: a step of GPT-2 124M with
    two threads on two cores took 28 ms instead of 15, because the model had been packed on another thread.

    Args:
        call: What to run.

    Returns:
        Its result.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def limit_arenas(environment: Mapping[str, str]) -> None:
    """Let all threads allocate from two heaps, if the C library is glibc and nobody has set another number.

    By default glibc makes eight heaps for each core, and each keeps the free memory of its own peak. Call it before the
    process has threads.

    Args:
        environment: Variables of the process.
    """
    if _is_glibc() and ARENAS not in environment:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _SERVER_ARENAS)


def return_freed_memory() -> None:
    """Return what the allocator keeps of freed memory to the system, if the C library is glibc; takes milliseconds."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    name = "CS_GNU_LIBC_VERSION"
    return sys.platform == "linux" and name in os.confstr_names and bool(os.confstr(name))
