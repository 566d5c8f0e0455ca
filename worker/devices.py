"""Which GPUs this machine has, and which job has which.

Asked of the driver's own program, because a worker never loads torch.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

_QUERY = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver numbers it."""

    index: int
    name: str
    memory_bytes: int


def find_gpus() -> tuple[Gpu, ...]:
    """GPUs that this process may use: all, or those that CUDA_VISIBLE_DEVICES names; none without a driver."""
    try:
        listing = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else {part.strip() for part in visible.split(",")}
    rows = ([part.strip() for part in line.split(",")] for line in listing.splitlines() if line.count(",") == 3)
    return tuple(
        Gpu(int(index), name, int(mebibytes) * 2**20 if mebibytes.isdigit() else 0)
        for index, uuid, name, mebibytes in rows
        if allowed is None or {index, uuid} & allowed
    )


def memory_bytes() -> int:
    """Memory of this machine, or of its container."""
    limits = [psutil.virtual_memory().total]
    for path in map(Path, _CGROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


class Devices:
    """Hands GPUs to jobs; each belongs to one at a time."""

    def __init__(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        self._free = {gpu.index for gpu in gpus}
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """How many nobody uses."""
        return len(self._free)

    def take(self, gpus: int | None) -> tuple[int, ...]:
        """Take GPUs for a job.

        Args:
            gpus: How many; None: one if there is any, else none.

        Raises:
            ValueError: So many are not free.
        """
        with self._lock:
            count = min(1, len(self.gpus)) if gpus is None else gpus
            if count > len(self._free):
                raise ValueError(f"{count} GPUs were asked for and {len(self._free)} are free")
            taken = tuple(sorted(self._free)[:count])
            self._free.difference_update(taken)
            return taken

    def give_back(self, indices: tuple[int, ...]) -> None:
        """Free what `take` returned."""
        with self._lock:
            self._free.update(indices)
