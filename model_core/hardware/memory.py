"""When memory runs out: what is said, and how many rows would fit.

A step's memory is a fixed part plus a part for each row of the micro batch. So fewer rows at a time, at a constant
number of rows a step, are the first remedy.
"""

from __future__ import annotations

import os
import sys

import torch

from model_core.budget import batch_sizes, fitting_batch_size
from model_core.config import ExperimentConfig
from model_core.errors import OutOfMemory
from model_core.hardware.device import Runtime


def fewer_rows(config: ExperimentConfig, batch_size: int) -> int | None:
    """The next micro batch to try: half of this one, or the nearest below that divides a step's rows.

    Args:
        config: Its total_batch_size stays.
        batch_size: Rows that did not fit.

    Returns:
        None when that was one row.
    """
    return next(iter(batch_sizes(config, batch_size // 2)), None)


def fitting_rows(config: ExperimentConfig, batch_size: int, capacity_bytes: int | None) -> int | None:
    """The largest micro batch that should fit.

    Args:
        config: What trains.
        batch_size: Rows that did not fit; the answer is at most half of them.
        capacity_bytes: What the device could give; None if that is not known.

    Returns:
        None when by the estimate not even one row fits, or when one row did not.
    """
    if capacity_bytes is None or batch_size == 1:
        return fewer_rows(config, batch_size)
    return fitting_batch_size(config, capacity_bytes, at_most=batch_size // 2)


def out_of_memory(config: ExperimentConfig, runtime: Runtime, *, step: int, batch_size: int) -> OutOfMemory:
    """The error to end with: what was reached, and what would help."""
    fitting = fitting_rows(config, batch_size, _capacity_bytes(runtime))
    peak = peak_bytes(runtime)
    return OutOfMemory(runtime.device, step, batch_size, peak_bytes=peak, fitting=fitting)


def peak_bytes(runtime: Runtime) -> int | None:
    """The most that this process ever held: on the GPU that it uses, else in all; None where nobody counts."""
    if runtime.device_type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _capacity_bytes(runtime: Runtime) -> int | None:
    if runtime.gpu is not None:  # what others hold cannot be had
        free, _ = torch.cuda.mem_get_info(runtime.device)
        return free + torch.cuda.memory_reserved(runtime.device)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
