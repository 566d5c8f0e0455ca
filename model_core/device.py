"""Which hardware a run uses, and why.

The decision is a pure function of the configuration and a description of the machine, so it can be tested for
machines that are not at hand. What was asked, what is used and what is off, with the reason, all go into the
run's `start` event.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_core.config import ExperimentConfig
from model_core.errors import DeviceUnavailable

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BACKENDS = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}
_AMPERE = (8, 0)
_FLASH_MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Gpu:
    """One visible CUDA device."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    uuid: str


@dataclass(frozen=True)
class Machine:
    """What a decision needs to know of a machine."""

    system: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False


@dataclass(frozen=True)
class Runtime:
    """What a run uses.

    Attributes:
        device: As torch writes it, for example ``cuda:0``.
        dtype: Number format of the matrix products.
        threads: CPU threads of one operation.
        compile: Whether torch.compile is tried.
        fused_adamw: Whether the optimizer updates in one kernel.
        scaler: Whether gradients are scaled (float16 alone).
        pinned: Whether batches travel from page-locked memory.
        tf32: Whether float32 products may round to TF32.
        attention_backend: As configured.
        gpu: The device used, if it is one.
        off: Accelerations that are off, with the reason.
    """

    device: str
    dtype: str
    threads: int
    compile: bool
    fused_adamw: bool
    scaler: bool
    pinned: bool
    tf32: bool
    attention_backend: str
    gpu: Gpu | None = None
    off: dict[str, str] = field(default_factory=dict)

    @property
    def device_type(self) -> str:
        """``cpu``, ``cuda`` or ``mps``."""
        return self.device.partition(":")[0]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which matrix products use `dtype`; parameters stay float32."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPES[self.dtype])

    @contextlib.contextmanager
    def attention(self) -> Iterator[None]:
        """Context in which the configured attention kernel is chosen."""
        if self.attention_backend == "auto":
            yield
            return
        with sdpa_kernel(_BACKENDS[self.attention_backend]):
            yield

    def describe(self) -> dict[str, Any]:
        """For the `start` event."""
        return asdict(self)


def describe_machine() -> Machine:
    """Look at this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        uuid = str(getattr(facts, "uuid", ""))
        gpus.append(Gpu(facts.name, (facts.major, facts.minor), facts.total_memory, uuid))
    return Machine(platform.system(), cores, tuple(gpus), torch.backends.mps.is_available())


def decide(config: ExperimentConfig, machine: Machine, gpu: int | None = None) -> Runtime:
    """Choose what a run uses.

    Args:
        config: Sections `device`, `execution` and `model`.
        machine: Where it will run.
        gpu: Index among the visible CUDA devices.

    Raises:
        DeviceUnavailable: What was asked for explicitly is not there.
    """
    off: dict[str, str] = {}
    kind = _device(config.device.device, machine, gpu)
    index = (gpu or 0) if kind == "cuda" else None
    card = machine.gpus[index] if index is not None else None
    dtype = _dtype(config.device.dtype, kind, card, off)
    tf32 = kind == "cuda" and config.device.tf32 and card is not None and card.capability >= _AMPERE
    if config.device.tf32 and not tf32:
        off["tf32"] = "needs an NVIDIA GPU of compute capability 8.0 or above"
    return Runtime(
        device=f"cuda:{index}" if kind == "cuda" else kind,
        dtype=dtype,
        threads=config.device.threads or machine.cores,
        compile=_compiles(config, machine, off),
        fused_adamw=kind in {"cpu", "cuda"},
        scaler=dtype == "float16",
        pinned=kind == "cuda",
        tf32=tf32,
        attention_backend=_backend(config, kind, dtype, off),
        gpu=card,
        off=off,
    )


def apply(runtime: Runtime) -> None:
    """Make the process-wide settings of a decision."""
    torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    # compiled for the CPU, an embedding's gradient is summed in whatever order threads finish, unless told not to
    torch.use_deterministic_algorithms(runtime.compile and runtime.device_type == "cpu", warn_only=True)


def _device(asked: str, machine: Machine, gpu: int | None) -> str:
    present = ", ".join(f"{i}: {g.name}" for i, g in enumerate(machine.gpus)) or "none"
    if gpu is not None and not 0 <= gpu < len(machine.gpus):
        raise DeviceUnavailable(f"no GPU {gpu}; visible GPUs are {present}")
    if asked == "cuda" and not machine.gpus:
        raise DeviceUnavailable("device.device is cuda, and no CUDA device is visible; use auto or cpu")
    if asked == "mps" and not machine.mps:
        raise DeviceUnavailable("device.device is mps, and this machine has no Metal device; use auto or cpu")
    if asked == "auto":
        return "cuda" if machine.gpus else "mps" if machine.mps else "cpu"
    return asked


def _dtype(asked: str, kind: str, card: Gpu | None, off: dict[str, str]) -> str:
    old_card = card is not None and card.capability < _AMPERE
    if asked == "auto":
        return "float16" if old_card or kind == "mps" else "bfloat16"
    if asked == "bfloat16" and old_card:
        off["bfloat16"] = f"{card.name if card else kind} has no bfloat16 units; float16 is used"
        return "float16"
    if asked == "bfloat16" and kind == "mps":
        off["bfloat16"] = "Metal autocast works in float16, which is used"
        return "float16"
    return asked


def _compiles(config: ExperimentConfig, machine: Machine, off: dict[str, str]) -> bool:
    if not config.execution.use_compile:
        return False
    if machine.system == "Windows":
        off["compile"] = "torch.compile is not supported on Windows"
        return False
    return True


def _backend(config: ExperimentConfig, kind: str, dtype: str, off: dict[str, str]) -> str:
    asked = config.device.attention_backend
    if asked == "flash":
        reasons = []
        if kind == "cuda" and dtype == "float32":
            reasons.append("float32")
        reasons += [
            f"layer {i}: head size {d}" for i, d in enumerate(config.model.head_dims) if d > _FLASH_MAX_HEAD_DIM
        ]
        if kind == "cuda" and reasons:
            off["flash"] = f"the flash kernel does not take {'; '.join(reasons)}"
            return "auto"
    if asked in {"flash", "efficient"} and kind == "mps":
        off[asked] = "Metal has one attention kernel of its own"
        return "auto"
    if asked == "efficient" and kind == "cpu":
        off["efficient"] = "the CPU has a flash and a math kernel only"
        return "auto"
    return asked
