"""What can go wrong in model_core, each with a code that is stable for programs.

A message names the offending value and what would be right. The command line prints it on one line, the
service turns it into a problem document; neither needs a stack trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar


@dataclass(frozen=True)
class FieldProblem:
    """One wrong value of a configuration or a request.

    Attributes:
        pointer: Where, as a JSON pointer (RFC 6901), for example ``/model/n_embd``.
        detail: What is wrong and what would be right.
        value: The value as given; None when it is missing.
        nearest: Values or keys close to the given one that would be accepted.
        code: ``invalid`` or ``not_available`` (a feature that is not built).
    """

    pointer: str
    detail: str
    value: Any = None
    nearest: tuple[Any, ...] = ()
    code: str = "invalid"


class ModelCoreError(Exception):
    """Base of every error that a caller can act on.

    Attributes:
        code: Stable for programs.
        hint: What would help.
        step: Of the training, where it broke.
        facts: What else was measured; they go into the `end` event.
    """

    code: ClassVar[str] = "failed"
    hint: str | None = None
    step: int | None = None
    facts: Mapping[str, Any] = MappingProxyType({})


class Stopped(ModelCoreError):
    """Somebody asked the process to stop; what it has done so far is kept, and the same again goes on from there."""

    code = "stopped"

    def __init__(self, reason: str | None) -> None:
        super().__init__(f"stopped by {reason}; the same command goes on from here")
        self.reason = reason


class InvalidConfig(ModelCoreError):
    """A configuration with wrong values: all of them, not the first alone."""

    code = "invalid_config"

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(f"{p.pointer}: {p.detail}" for p in problems))
        self.problems = problems


class NotAvailable(InvalidConfig):
    """A configuration that is right, but asks for a feature that this version does not have."""

    code = "not_available"


class PackageMissing(ModelCoreError):
    """A key needs a package that is an extra, and it is not installed."""

    code = "not_available"

    def __init__(self, key: str, extra: str) -> None:
        super().__init__(f"{key} is on, and the package {extra!r} is not installed here")
        self.hint = f"pip install 'headcount[{extra}]', or turn {key} off"


class MalformedConfig(ModelCoreError):
    """Text that is not YAML, or YAML that is not a mapping."""

    code = "malformed_body"


class ConfigFileNotFound(ModelCoreError):
    """There is no file at that path."""

    code = "invalid_parameter"

    def __init__(self, path: Path) -> None:
        super().__init__(f"no configuration file at {path.resolve()}; presets stand in configs/, ending in .yaml")


class UnknownPreset(ModelCoreError):
    """No preset has that name."""

    code = "unknown_preset"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no preset {name!r}; there are: {', '.join(known)}")


class InvalidParameter(ModelCoreError):
    """An argument outside what is allowed."""

    code = "invalid_parameter"


class InvalidData(ModelCoreError):
    """A data file that cannot be what it should be."""

    code = "invalid_data"


class PromptTooLong(ModelCoreError):
    """More prompt tokens than the model has positions."""

    code = "prompt_too_long"

    def __init__(self, tokens: int, block_size: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens; the model takes at most {block_size}")


class AttentionTooLarge(ModelCoreError):
    """Attention weights that would not fit in memory."""

    code = "attention_too_large"


class DeviceUnavailable(ModelCoreError):
    """The configuration names a device or a number format that this machine does not have."""

    code = "invalid_parameter"


class NonFiniteLoss(ModelCoreError):
    """Training diverged."""

    code = "non_finite_loss"

    def __init__(self, step: int, loss: float, grad_norm: float | None) -> None:
        norm = "unknown" if grad_norm is None else f"{grad_norm:.4g}"
        super().__init__(f"the loss is {loss:.6g} at step {step}, the gradient norm {norm}")
        self.hint = "lower training.max_lr, keep training.grad_clip above 0, or use device.dtype float32"
        self.step, self.facts = step, {"grad_norm": grad_norm}


class OutOfMemory(ModelCoreError):
    """A training step does not fit in the memory of its device."""

    code = "cuda_oom"
    REMEDIES: ClassVar[str] = "shorten training.sequence_length, or set training.gradient_checkpointing to true"

    def __init__(self, device: str, step: int, batch_size: int, *, peak_bytes: int | None, fitting: int | None) -> None:
        peak = "unknown" if peak_bytes is None else f"{peak_bytes / 2**30:.2f} GiB"
        fits = "no smaller batch_size is left" if fitting is None else f"batch_size {fitting} should fit"
        super().__init__(f"{device} ran out of memory at step {step} with batch_size {batch_size}: peak {peak}; {fits}")
        smaller = "" if fitting is None else f"set training.batch_size to {fitting}, "
        self.hint = smaller + self.REMEDIES
        self.step = step
        self.facts = {"batch_size": batch_size, "fitting_batch_size": fitting, "peak_memory_bytes": peak_bytes}


# What allocators without an exception class of their own say.
_SAID_BY_ALLOCATORS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on whichever device."""
    if isinstance(error, OutOfMemory | MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_BY_ALLOCATORS)
