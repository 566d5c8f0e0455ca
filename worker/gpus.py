"""The GPUs of this machine, and the jobs of this worker that hold them.

The driver's own program `nvidia-smi` lists them, because a worker never loads torch.
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
    """One GPU, with the index that the driver gives it."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


def find_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that this process may use.

    Returns:
        All GPUs, or those that CUDA_VISIBLE_DEVICES names; empty without a driver.
    """
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
    """Measure the memory that processes of this machine may use.

    Returns:
        Total memory of the machine or, if that is less, the limit of the container.
    """
    limits = [psutil.virtual_memory().total]
    for path in map(Path, _CGROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


class GpuPool:
    """The GPUs of this worker and the jobs that hold them. The store resolves conflicts with other workers of the host.

    Args:
        gpus: All GPUs that this worker may use.
    """

    def __init__(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def idle(self) -> tuple[str, ...]:
        """Uuids of the GPUs that no job of this worker holds."""
        with self._lock:
            return tuple(gpu.uuid for gpu in self.gpus if gpu.uuid not in self._holders)

    def holder(self, uuid: str) -> str | None:
        """Look up the job that holds a GPU.

        Args:
            uuid: The GPU.

        Returns:
            The job's id; None while the GPU is idle.
        """
        return self._holders.get(uuid)

    def allocate(self, uuids: tuple[str, ...], job_id: str) -> tuple[int, ...]:
        """Give GPUs to a job.

        Args:
            uuids: The GPUs.
            job_id: The job that holds them until `release`.

        Returns:
            Their indices, as the driver numbers them.

        Raises:
            ValueError: A GPU belongs to another worker or is held by a job.
        """
        with self._lock:
            index = {gpu.uuid: gpu.index for gpu in self.gpus if gpu.uuid not in self._holders}
            missing = [uuid for uuid in uuids if uuid not in index]
            if missing:
                raise ValueError(f"{', '.join(missing)}: no idle GPU of this worker")
            self._holders.update(dict.fromkeys(uuids, job_id))
            return tuple(index[uuid] for uuid in uuids)

    def release(self, job_id: str) -> None:
        """Free the GPUs of a job.

        Args:
            job_id: The job; one without GPUs changes nothing.
        """
        with self._lock:
            self._holders = {uuid: holder for uuid, holder in self._holders.items() if holder != job_id}
