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
    uuid: str
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
        Gpu(int(index), uuid, name, int(mebibytes) * 2**20 if mebibytes.isdigit() else 0)
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
    """The GPUs of this worker and which job has which; the store settles it with other workers of the same host."""

    def __init__(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def idle(self) -> tuple[str, ...]:
        """Uuids of those that no job of this worker has."""
        with self._lock:
            return tuple(gpu.uuid for gpu in self.gpus if gpu.uuid not in self._holders)

    def holder(self, uuid: str) -> str | None:
        """The job that has a GPU."""
        return self._holders.get(uuid)

    def take(self, uuids: tuple[str, ...], job_id: str) -> tuple[int, ...]:
        """Give GPUs to a job.

        Returns:
            Their indices, as the driver numbers them.

        Raises:
            ValueError: One is not this worker's, or another job has it.
        """
        with self._lock:
            index = {gpu.uuid: gpu.index for gpu in self.gpus if gpu.uuid not in self._holders}
            missing = [uuid for uuid in uuids if uuid not in index]
            if missing:
                raise ValueError(f"{', '.join(missing)}: no idle GPU of this worker")
            self._holders.update(dict.fromkeys(uuids, job_id))
            return tuple(index[uuid] for uuid in uuids)

    def give_back(self, job_id: str) -> None:
        """Free what a job has."""
        with self._lock:
            self._holders = {uuid: holder for uuid, holder in self._holders.items() if holder != job_id}
