"""Chooses device, number format and accelerations of a run, each with a reason.

The choice is a pure function of the configuration and a description of the machine (`Machine`), so tests cover machines
that are not at hand. Request, choice and every acceleration that is off, with its reason, go into the `start` event.
An explicit request is honored or refused, with two exceptions that resolve with a warning: bfloat16 becomes float16
where the device lacks it, and a format that is merely slow on a CPU is used as requested.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_core.config import ExperimentConfig
from model_core.errors import DeviceUnavailable
from model_core.hardware.attention_backend import AMPERE, ORDER, Hardware, LayerKernel, layer_kernels, summary

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


_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Runtime:
    """What a run uses.

    Attributes:
        device: As torch writes it, for example ``cuda:0``.
        dtype: Number format of the matrix products.
        threads: CPU threads of one operation.
        compile_mode: How torch.compile is tried; None: not at all.
        fused_adamw: Whether the optimizer updates in one kernel.
        scaler: Whether gradients are scaled (float16 alone).
        pinned: Whether batches travel from page-locked memory while the device computes.
        tf32: Whether float32 products may round to TF32.
        attention_backend: As configured.
        kernels: What computes the attention of each layer.
        gpu: The device used, if it is one.
        off: Accelerations that are off, with the reason.
        warnings: Code and detail of what was asked for and is otherwise, or is slow.
    """

    device: str
    dtype: str
    threads: int
    compile_mode: str | None
    fused_adamw: bool
    scaler: bool
    pinned: bool
    tf32: bool
    attention_backend: str
    kernels: tuple[LayerKernel, ...]
    gpu: Gpu | None = None
    off: dict[str, str] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()

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
        """Context in which every layer gets the kernel that `kernels` says."""
        if self.device_type == "mps":
            yield
            return
        with sdpa_kernel([_BACKENDS[name] for name in ORDER[self.attention_backend]], set_priority=True):
            yield

    def describe(self) -> dict[str, Any]:
        """For the `start` event."""
        facts = asdict(self)
        facts.pop("warnings")
        if self.gpu is not None:
            facts["gpu"]["index"] = int(self.device.partition(":")[2])
        return facts


def decide(config: ExperimentConfig, machine: Machine, gpu: int | None = None) -> Runtime:
    """Choose what a run uses.

    Args:
        config: Sections `device`, `execution` and `model`.
        machine: Where it will run.
        gpu: Index among the visible CUDA devices.

    Raises:
        DeviceUnavailable: What was asked for explicitly is not there.
    """
    asked, notes = config.device, _Notes()
    kind = _device(asked.device, machine, gpu)
    index = (gpu or 0) if kind == "cuda" else None
    card = machine.gpus[index] if index is not None else None
    dtype = _dtype_of_cpu(asked.dtype, machine, notes) if kind == "cpu" else _dtype(asked.dtype, kind, card, notes)
    hardware = Hardware(kind, dtype, card.capability if card else None)
    return Runtime(
        device=f"cuda:{index}" if kind == "cuda" else kind,
        dtype=dtype,
        threads=asked.threads or machine.cores,
        compile_mode=_compile_mode(config, machine, kind, notes),
        fused_adamw=_fused_adamw(machine, kind, notes),
        scaler=dtype == "float16",
        pinned=_pinned(kind, notes),
        tf32=_tf32(asked.tf32, card, notes),
        attention_backend=asked.attention_backend,
        kernels=_kernels(config, hardware, notes),
        gpu=card,
        off=notes.off,
        warnings=tuple(notes.warnings),
    )


def apply(runtime: Runtime) -> None:
    """Make the process-wide settings of a decision."""
    torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    # compiled for the CPU, an embedding's gradient is summed in whatever order threads finish, unless told not to
    torch.use_deterministic_algorithms(bool(runtime.compile_mode) and runtime.device_type == "cpu", warn_only=True)
    if runtime.device_type == "cuda":
        torch.cuda.set_device(runtime.device)  # else page-locked memory would be taken through the first GPU


class _Notes:
    """What a decision has to say beside its result."""

    def __init__(self) -> None:
        self.off: dict[str, str] = {}
        self.warnings: list[tuple[str, str]] = []

    def turn_off(self, what: str, reason: str, *, is_asked_for: bool = False) -> None:
        """An acceleration is not to be had; whoever asked for it by name is warned."""
        self.off[what] = reason
        if is_asked_for:
            self.warnings.append((f"{what}_off", reason))


def _device(asked: str, machine: Machine, gpu: int | None) -> str:
    present = ", ".join(f"{i}: {g.name}" for i, g in enumerate(machine.gpus)) or "none"
    if gpu is not None and not 0 <= gpu < len(machine.gpus):
        raise DeviceUnavailable(f"no GPU {gpu}; visible GPUs are {present}")
    if gpu is not None and asked not in {"auto", "cuda"}:
        raise DeviceUnavailable(f"GPU {gpu} is asked for, and device.device is {asked}; set it to auto or cuda")
    if asked == "cuda" and not machine.gpus:
        raise DeviceUnavailable("device.device is cuda, and no CUDA device is visible; use auto or cpu")
    if asked == "mps" and not machine.mps:
        raise DeviceUnavailable("device.device is mps, and this machine has no Metal device; use auto or cpu")
    if asked == "auto":
        return "cuda" if machine.gpus else "mps" if machine.mps else "cpu"
    return asked


def _dtype(asked: str, kind: str, card: Gpu | None, notes: _Notes) -> str:
    why = None
    if card is not None and card.capability < AMPERE:
        why = f"{card.name} has no bfloat16 units; float16 is used"
    elif kind == "mps":
        why = "Metal autocast works in float16, which is used"
    if why is not None and asked in {"auto", "bfloat16"}:
        notes.turn_off("bfloat16", why, is_asked_for=asked == "bfloat16")
        return "float16"
    if asked == "float32":
        notes.turn_off("half_precision", "device.dtype is float32")
    return "bfloat16" if asked == "auto" else asked


def _dtype_of_cpu(asked: str, machine: Machine, notes: _Notes) -> str:
    if asked == "float16":
        notes.warnings.append(("float16_slow", "float16 is emulated on a CPU and many times slower than float32"))
    if not machine.cpu_bfloat16:
        why = "this CPU has no instructions for bfloat16, which is emulated and many times slower than float32"
        if asked == "bfloat16":
            notes.warnings.append(("bfloat16_slow", f"{why}; device.dtype auto uses float32"))
        else:
            notes.turn_off("bfloat16", why)
    if asked == "float32":
        notes.turn_off("half_precision", "device.dtype is float32")
    return asked if asked != "auto" else "bfloat16" if machine.cpu_bfloat16 else "float32"


def _compile_mode(config: ExperimentConfig, machine: Machine, kind: str, notes: _Notes) -> str | None:
    if not config.execution.use_compile:
        notes.turn_off("compile", "execution.use_compile is false")
        return None
    if machine.system == "Windows":
        notes.turn_off("compile", "torch.compile is not supported on Windows", is_asked_for=True)
        return None
    return "max-autotune" if kind == "cuda" and machine.system == "Linux" else "default"


def _fused_adamw(machine: Machine, kind: str, notes: _Notes) -> bool:
    if kind not in machine.fused:
        notes.turn_off("fused_adamw", f"this PyTorch has no fused AdamW for {kind}; the plain one is used")
    return kind in machine.fused


def _pinned(kind: str, notes: _Notes) -> bool:
    if kind != "cuda":
        notes.turn_off("pinned_batches", f"batches need no page-locked memory on {kind}")
    return kind == "cuda"


def _tf32(is_wanted: bool, card: Gpu | None, notes: _Notes) -> bool:
    is_able = card is not None and card.capability >= AMPERE
    if not is_wanted:
        notes.turn_off("tf32", "device.tf32 is false")
    elif not is_able:
        notes.turn_off("tf32", "needs an NVIDIA GPU of compute capability 8.0 or above")
    return is_wanted and is_able


def _kernels(config: ExperimentConfig, hardware: Hardware, notes: _Notes) -> tuple[LayerKernel, ...]:
    asked = config.device.attention_backend
    kernels = layer_kernels(config.model, hardware, asked)
    reasons = summary(kernels)
    if reasons is not None:
        notes.turn_off("flash" if asked == "auto" else asked, reasons, is_asked_for=asked != "auto")
    if asked in {"efficient", "math"}:
        notes.off.setdefault("flash", f"device.attention_backend is {asked}")
    return kernels
