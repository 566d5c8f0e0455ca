"""Chooses device, number format and accelerations of a run, with a reason for each that is off.

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
from model_core.hardware.attention_backend import AMPERE, ORDER, Hardware, LayerKernel, fallback_summary, layer_kernels
from model_core.hardware.process_environment import requested_threads, usable_cores

_CPUINFO = Path("/proc/cpuinfo")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Gpu:
    """One visible CUDA device.

    Attributes:
        name: Name, as the driver reports it.
        capability: Compute capability.
        memory_bytes: Total memory.
        uuid: Identifier that does not depend on CUDA_VISIBLE_DEVICES.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    uuid: str


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that a choice depends on.

    Attributes:
        system: Operating system, as `platform.system` names it.
        cores: CPU cores that this process may use.
        gpus: Visible CUDA devices, by index.
        mps: Whether there is a Metal device.
        fused: Kinds of device for which this PyTorch has a fused AdamW.
        threads: CPU threads of one operation that the environment asks for; None leaves them to the cores.
        cpu_bfloat16: Whether the CPU has bfloat16 instructions; where they are emulated, float32 is many times faster.
    """

    system: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    fused: Collection[str] = ("cpu", "cuda", "mps")
    threads: int | None = None
    cpu_bfloat16: bool = True


def describe_machine() -> Machine:
    """Describe this machine.

    Returns:
        Its properties.
    """
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = str(getattr(properties, "uuid", ""))
        gpus.append(Gpu(properties.name, (properties.major, properties.minor), properties.total_memory, uuid))
    mps = torch.backends.mps.is_available()
    return Machine(
        platform.system(),
        usable_cores(),
        tuple(gpus),
        mps,
        _fused_kinds(),
        requested_threads(os.environ),
        has_bfloat16(_CPUINFO),
    )


def has_bfloat16(cpuinfo: Path) -> bool:
    """Return whether the CPU has bfloat16 instructions.

    Args:
        cpuinfo: The kernel's list of CPU features, of x86 or Arm.

    Returns:
        False also if the file cannot be read.
    """
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Runtime:
    """Device, number format and accelerations of a run.

    Attributes:
        device: Device, as torch writes it, for example ``cuda:0``.
        dtype: Number format of the matmuls.
        threads: CPU threads of one operation.
        compile_mode: Mode of torch.compile; None does not compile.
        fused_adamw: Whether the optimizer updates in one kernel.
        scaler: Whether gradients are scaled; only in float16.
        pinned: Whether batches are copied from page-locked memory while the device computes.
        tf32: Whether float32 matmuls may round to TF32.
        attention_backend: `device.attention_backend`.
        kernels: Attention kernel of each layer.
        gpu: The CUDA device; None on other devices.
        off: Accelerations that are off, with the reason.
        warnings: Code and detail of requests that resolve otherwise or are slow.
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
        """Run matmuls in `dtype`; parameters stay float32.

        Returns:
            A context manager.
        """
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPES[self.dtype])

    @contextlib.contextmanager
    def attention(self) -> Iterator[None]:
        """Run every layer with its kernel of `kernels`, inside the context."""
        if self.device_type == "mps":
            yield
            return
        with sdpa_kernel([_BACKENDS[name] for name in ORDER[self.attention_backend]], set_priority=True):
            yield

    def describe(self) -> dict[str, Any]:
        """Describe the runtime for the `start` event.

        Returns:
            Its fields without the warnings, and the index of the GPU.
        """
        fields = asdict(self)
        fields.pop("warnings")
        if self.gpu is not None:
            fields["gpu"]["index"] = int(self.device.partition(":")[2])
        return fields


def decide(config: ExperimentConfig, machine: Machine, gpu: int | None = None) -> Runtime:
    """Choose device, number format and accelerations.

    Args:
        config: Sections `device`, `execution` and `model`.
        machine: The machine.
        gpu: Index of the CUDA device to use; None leaves it to the configuration.

    Returns:
        The runtime.

    Raises:
        DeviceUnavailable: The machine lacks the device that was requested explicitly.
    """
    requested, notes = config.device, _Notes()
    kind = _device(requested.device, machine, gpu)
    index = (gpu or 0) if kind == "cuda" else None
    card = machine.gpus[index] if index is not None else None
    is_cpu = kind == "cpu"
    dtype = _cpu_dtype(requested.dtype, machine, notes) if is_cpu else _dtype(requested.dtype, kind, card, notes)
    hardware = Hardware(kind, dtype, card.capability if card else None)
    return Runtime(
        device=f"cuda:{index}" if kind == "cuda" else kind,
        dtype=dtype,
        threads=requested.threads or machine.threads or machine.cores,
        compile_mode=_compile_mode(config, machine, kind, notes),
        fused_adamw=_fused_adamw(machine, kind, notes),
        scaler=dtype == "float16",
        pinned=_pinned(kind, notes),
        tf32=_tf32(requested.tf32, card, notes),
        attention_backend=requested.attention_backend,
        kernels=_kernels(config, hardware, notes),
        gpu=card,
        off=notes.off,
        warnings=tuple(notes.warnings),
    )


def apply(runtime: Runtime) -> None:
    """Make the process-wide settings of a runtime.

    Args:
        runtime: The runtime.
    """
    torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
    # compiled for the CPU, an embedding's gradient is otherwise summed in the order in which threads finish
    torch.use_deterministic_algorithms(bool(runtime.compile_mode) and runtime.device_type == "cpu", warn_only=True)
    if runtime.device_type == "cuda":
        torch.cuda.set_device(runtime.device)  # otherwise page-locked memory is allocated through the first GPU


def _fused_kinds() -> tuple[str, ...]:
    """Kinds of device with a fused AdamW; trying it would allocate memory on GPUs that are not used."""
    try:
        from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
    except ImportError:
        return ("cuda",)  # in every PyTorch 2
    return tuple(_get_fused_kernels_supported_devices())


class _Notes:
    """Reasons and warnings, collected while choosing."""

    def __init__(self) -> None:
        self.off: dict[str, str] = {}
        self.warnings: list[tuple[str, str]] = []

    def turn_off(self, what: str, reason: str, *, is_requested: bool = False) -> None:
        """Record an acceleration as off, with a warning if it was requested explicitly."""
        self.off[what] = reason
        if is_requested:
            self.warnings.append((f"{what}_off", reason))


def _device(requested: str, machine: Machine, gpu: int | None) -> str:
    present = ", ".join(f"{i}: {g.name}" for i, g in enumerate(machine.gpus)) or "none"
    if gpu is not None and not 0 <= gpu < len(machine.gpus):
        raise DeviceUnavailable(f"no GPU {gpu}; visible GPUs are {present}")
    if gpu is not None and requested not in {"auto", "cuda"}:
        raise DeviceUnavailable(f"GPU {gpu} is asked for, and device.device is {requested}; set it to auto or cuda")
    if requested == "cuda" and not machine.gpus:
        raise DeviceUnavailable("device.device is cuda, and no CUDA device is visible; use auto or cpu")
    if requested == "mps" and not machine.mps:
        raise DeviceUnavailable("device.device is mps, and this machine has no Metal device; use auto or cpu")
    if requested == "auto":
        return "cuda" if machine.gpus else "mps" if machine.mps else "cpu"
    return requested


def _dtype(requested: str, kind: str, card: Gpu | None, notes: _Notes) -> str:
    why = None
    if card is not None and card.capability < AMPERE:
        why = f"{card.name} has no bfloat16 units; float16 is used"
    elif kind == "mps":
        why = "Metal autocast works in float16, which is used"
    if why is not None and requested in {"auto", "bfloat16"}:
        notes.turn_off("bfloat16", why, is_requested=requested == "bfloat16")
        return "float16"
    if requested == "float32":
        notes.turn_off("half_precision", "device.dtype is float32")
    return "bfloat16" if requested == "auto" else requested


def _cpu_dtype(requested: str, machine: Machine, notes: _Notes) -> str:
    if requested == "float16":
        notes.warnings.append(("float16_slow", "float16 is emulated on a CPU and many times slower than float32"))
    if not machine.cpu_bfloat16:
        why = "this CPU has no instructions for bfloat16, which is emulated and many times slower than float32"
        if requested == "bfloat16":
            notes.warnings.append(("bfloat16_slow", f"{why}; device.dtype auto uses float32"))
        else:
            notes.turn_off("bfloat16", why)
    if requested == "float32":
        notes.turn_off("half_precision", "device.dtype is float32")
    return requested if requested != "auto" else "bfloat16" if machine.cpu_bfloat16 else "float32"


def _compile_mode(config: ExperimentConfig, machine: Machine, kind: str, notes: _Notes) -> str | None:
    if not config.execution.use_compile:
        notes.turn_off("compile", "execution.use_compile is false")
        return None
    if machine.system == "Windows":
        notes.turn_off("compile", "torch.compile is not supported on Windows", is_requested=True)
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
    requested = config.device.attention_backend
    kernels = layer_kernels(config.model, hardware, requested)
    reasons = fallback_summary(kernels)
    if reasons is not None:
        notes.turn_off("flash" if requested == "auto" else requested, reasons, is_requested=requested != "auto")
    if requested in {"efficient", "math"}:
        notes.off.setdefault("flash", f"device.attention_backend is {requested}")
    return kernels
