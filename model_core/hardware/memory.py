"""Out of memory: the error, and how many rows of a micro batch would fit.

The memory of a step is a constant plus a part for each row of the micro batch. So the first remedy is fewer rows at a
time, at the same number of rows per step.
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
    """Choose the next micro batch to try: half, or the nearest below that divides the rows of a step.

    Args:
        config: The configuration; its total_batch_size stays the same.
        batch_size: Rows that did not fit.

    Returns:
        Rows; None if one row did not fit.
    """
    return next(iter(batch_sizes(config, batch_size // 2)), None)


def fitting_rows(config: ExperimentConfig, batch_size: int, capacity_bytes: int | None) -> int | None:
    """Estimate the largest micro batch that fits.

    Args:
        config: The configuration.
        batch_size: Rows that did not fit; the result is at most half of them.
        capacity_bytes: Memory that the device can provide; None if it is not known.

    Returns:
        Rows; None if one row did not fit, or does not by the estimate.
    """
    if capacity_bytes is None or batch_size == 1:
        return fewer_rows(config, batch_size)
    return fitting_batch_size(config, capacity_bytes, at_most=batch_size // 2)


def out_of_memory(config: ExperimentConfig, runtime: Runtime, *, step: int, batch_size: int) -> OutOfMemory:
    """Create the error that ends a run.

    Args:
        config: The configuration.
        runtime: Device of the run.
        step: The step that did not fit.
        batch_size: Rows that did not fit.

    Returns:
        The error, with the peak memory and the number of rows that would fit.
    """
    fitting = fitting_rows(config, batch_size, _capacity_bytes(runtime))
    peak = peak_bytes(runtime)
    return OutOfMemory(runtime.device, step, batch_size, peak_bytes=peak, fitting=fitting)


def peak_bytes(runtime: Runtime) -> int | None:
    """Measure the peak memory of this process: on its GPU, or in total on other devices.

    Args:
        runtime: Device of the run.

    Returns:
        Bytes; None where the system does not count them.
    """
    if runtime.device_type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _capacity_bytes(runtime: Runtime) -> int | None:
    if runtime.gpu is not None:  # without what other processes hold
        free, _ = torch.cuda.mem_get_info(runtime.device)
        return free + torch.cuda.memory_reserved(runtime.device)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
