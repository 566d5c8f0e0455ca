"""What a decision about hardware needs to know of a machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Gpu:
    """One visible CUDA device."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    uuid: str


@dataclass(frozen=True)
class Machine:
    """What a decision needs to know of a machine.

    Attributes:
        system: As `platform.system` names it.
        cores: That this process may use.
        gpus: The visible CUDA devices, in their order.
        mps: Whether there is a Metal device.
        fused: Kinds of device for which this PyTorch has a fused AdamW.
        cpu_bfloat16: Whether the CPU multiplies bfloat16 itself; where it is emulated, float32 is many times faster.
    """

    system: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    fused: Collection[str] = ("cpu", "cuda", "mps")
    cpu_bfloat16: bool = True


def describe_machine() -> Machine:
    """Look at this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        uuid = str(getattr(facts, "uuid", ""))
        gpus.append(Gpu(facts.name, (facts.major, facts.minor), facts.total_memory, uuid))
    mps = torch.backends.mps.is_available()
    return Machine(platform.system(), cores, tuple(gpus), mps, _fused_kinds(), multiplies_bfloat16(_CPUINFO))


def multiplies_bfloat16(cpuinfo: Path) -> bool:
    """Whether the CPU has instructions for it.

    Args:
        cpuinfo: Where the kernel lists them, of x86 or of Arm; without such a list none are assumed.
    """
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _fused_kinds() -> tuple[str, ...]:
    """Kinds of device with a fused AdamW; trying it out would take memory of a GPU that is not used."""
    try:
        from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
    except ImportError:
        return ("cuda",)  # what every PyTorch 2 has
    return tuple(_get_fused_kernels_supported_devices())
