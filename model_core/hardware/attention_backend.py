"""The attention kernel of every layer, and the reason if it is not the fastest.

PyTorch falls back silently, layer by layer, because head sizes differ and each kernel supports some of them. This is a
pure function of its conditions, so that it can be tested without the hardware. Source: PyTorch 2.13,
`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` and its CPU counterpart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from model_core.budget import FLASH_MAX_HEAD_DIM
from model_core.config import ModelConfig

Kernel = Literal["flash", "efficient", "math", "metal"]
Capability = tuple[int, int]

AMPERE: Capability = (8, 0)
_NEWEST: Capability = (12, 1)
# Training needs more shared memory than these cards have: up to 192 always fits, above 224 only without dropout.
_SMALL_CARDS: tuple[tuple[Capability, Capability], ...] = (((8, 6), (8, 9)), ((12, 0), (12, 1)))
_SMALL_HEAD_DIM, _MIDDLE_HEAD_DIM = 192, 224

# Tried in this order. Without cuDNN's kernel, which PyTorch may prefer on Hopper, the choice is known.
ORDER: dict[str, tuple[Kernel, ...]] = {
    "auto": ("flash", "efficient", "math"),
    "flash": ("flash", "efficient", "math"),
    "efficient": ("efficient", "math"),
    "math": ("math",),
}


@dataclass(frozen=True)
class Hardware:
    """The properties of a device that decide which kernels support it.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``mps``.
        dtype: Number format: ``bfloat16``, ``float16`` or ``float32``.
        capability: Compute capability of an NVIDIA GPU.
    """

    kind: str
    dtype: str
    capability: Capability | None = None


@dataclass(frozen=True)
class LayerKernel:
    """The kernel of one layer.

    Attributes:
        layer: Index of the layer.
        n_head: Its head count.
        head_dim: Size of its heads.
        kernel: Kernel that computes its attention in training.
        reason: Why it is not the first choice of the configured backend; None if it is.
    """

    layer: int
    n_head: int
    head_dim: int
    kernel: Kernel
    reason: str | None


def layer_kernels(model: ModelConfig, hardware: Hardware, backend: str) -> tuple[LayerKernel, ...]:
    """Determine the kernel of every layer.

    Args:
        model: Heads, head sizes and dropout.
        hardware: Device of the training.
        backend: `device.attention_backend`.

    Returns:
        The kernel of each layer.
    """
    shapes = enumerate(zip(model.heads, model.head_dims, strict=True))
    return tuple(LayerKernel(i, h, d, *_choose(d, model.dropout, hardware, backend)) for i, (h, d) in shapes)


def fallback_summary(kernels: Iterable[LayerKernel]) -> str | None:
    """Join the reasons of all layers in one line, layers with the same reason together.

    Args:
        kernels: The kernel of each layer.

    Returns:
        The line; None if every layer has its first choice.
    """
    layers = defaultdict(list)
    for kernel in kernels:
        if kernel.reason is not None:
            layers[kernel.reason].append(kernel.layer)
    parts = [f"layer{'s' * (len(found) > 1)} {_ranges(found)}: {reason}" for reason, found in layers.items()]
    return "; ".join(parts) or None


def unsupported_reason(kernel: Kernel, head_dim: int, dropout: float, hardware: Hardware) -> str | None:
    """Explain why a kernel does not support training a layer.

    Args:
        kernel: ``flash``, ``efficient`` or ``math``, which supports everything.
        head_dim: Size of the layer's heads.
        dropout: Probability with which attention is dropped.
        hardware: A CPU or an NVIDIA GPU.

    Returns:
        The reason; None if the kernel supports it.
    """
    if kernel == "math":
        return None
    if hardware.kind == "cpu":
        return _cpu_reason(kernel, dropout)
    assert hardware.capability is not None
    if kernel == "efficient":
        return _efficient_reason(head_dim, hardware.dtype, hardware.capability)
    return _flash_reason(head_dim, dropout, hardware.dtype, hardware.capability)


def _choose(head_dim: int, dropout: float, hardware: Hardware, backend: str) -> tuple[Kernel, str | None]:
    if hardware.kind == "mps":
        return "metal", "Metal has one attention kernel of its own"
    first, *others = ORDER[backend]
    reason = unsupported_reason(first, head_dim, dropout, hardware)
    if reason is None:
        return first, None
    return next(k for k in others if unsupported_reason(k, head_dim, dropout, hardware) is None), reason


def _cpu_reason(kernel: Kernel, dropout: float) -> str | None:
    if kernel == "efficient":
        return "the CPU has a flash and a math kernel only"
    return "dropout takes the math kernel on the CPU" if dropout else None


def _flash_reason(head_dim: int, dropout: float, dtype: str, capability: Capability) -> str | None:
    if not AMPERE <= capability <= _NEWEST:
        return f"the GPU's compute capability {_version(capability)} is not between 8.0 and {_version(_NEWEST)}"
    if dtype == "float32":
        return "float32, and the flash kernel takes bfloat16 and float16"
    if head_dim > FLASH_MAX_HEAD_DIM:
        return f"head size {head_dim} is above {FLASH_MAX_HEAD_DIM}"
    is_small = any(low <= capability <= high for low, high in _SMALL_CARDS)
    if is_small and head_dim > _SMALL_HEAD_DIM and (dropout or head_dim <= _MIDDLE_HEAD_DIM):
        return f"head size {head_dim} does not train on compute capability {_version(capability)}"
    return None


def _efficient_reason(head_dim: int, dtype: str, capability: Capability) -> str | None:
    if capability < (5, 0) or capability > _NEWEST:
        return f"the GPU's compute capability {_version(capability)} is not between 5.0 and {_version(_NEWEST)}"
    multiple = _alignment(dtype, capability)
    return f"head size {head_dim} is not a multiple of {multiple}" if head_dim % multiple else None


def _alignment(dtype: str, capability: Capability) -> int:
    """The number that a head size must be a multiple of: tensor cores read 16 bytes at once."""
    if capability >= AMPERE:
        return 4 if dtype == "float32" else 8
    return 8 if capability >= (7, 0) and dtype != "float32" else 1


def _version(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _ranges(numbers: list[int]) -> str:
    """Increasing numbers, with consecutive ones joined: ``0-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
