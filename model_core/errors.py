"""Errors of model_core, each with a code that is stable for programs.

A message names the offending value and what would be right. The command line prints it on one line, the service turns
it into a problem document; neither needs a stack trace. The second half covers records on disk: runs, checkpoints,
datasets and examples that are missing, taken, locked or damaged, and full disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

# Exit codes of the project's programs.
DONE, FAILED, BAD_INPUT, STOPPED, BUSY, INTERRUPTED = 0, 1, 2, 75, 76, 130
PIPE_CLOSED = 128 + 13  # what a shell reports of a process that SIGPIPE ended, as `| head` does

# Error codes of invalid input, and of input that does not match what is on disk or on the hub.
INVALID_INPUT_CODES = frozenset(
    {"invalid_config", "not_available", "malformed_body", "invalid_parameter", "unknown_preset"}
)
BAD_INPUT_CODES = INVALID_INPUT_CODES | {
    "run_exists", "run_not_found", "dataset_not_ready", "data_changed", "checkpoint_mismatch", "checkpoint_not_found",
    "checkpoint_not_ready", "invalid_data", "hub_login_required", "hub_terms_not_accepted", "hub_bad_token",
    "hub_not_found",
}  # fmt: skip

_MAX_SHOWN = 20  # wrong values in one message

# Messages of allocators without an exception class of their own.
_ALLOCATOR_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of memory",
)


def shown(value: Any) -> str:
    """Write a value for a person, in the words of YAML and JSON.

    Args:
        value: A value of a configuration or a request.

    Returns:
        For example ``null``, ``true``, ``[8, 4]`` or ``'a text'``.
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass(frozen=True)
class FieldProblem:
    """One wrong value of a configuration or a request.

    Attributes:
        pointer: JSON pointer (RFC 6901) to the value, for example ``/model/n_embd``.
        detail: What is wrong and what would be right.
        value: The value as given; None when it is missing.
        nearest: Valid values or keys close to the given one.
        code: ``invalid``, or ``not_available`` for a feature that is not built.
    """

    pointer: str
    detail: str
    value: Any = None
    nearest: tuple[Any, ...] = ()
    code: str = "invalid"

    def moved(self, place: str, to: str) -> FieldProblem:
        """Point at the same value in another document.

        Args:
            place: JSON pointer in this document.
            to: JSON pointer of the same value in the other one.

        Returns:
            The problem there; this one if it is neither at the place nor below it.
        """
        is_there = self.pointer == place or self.pointer.startswith(f"{place}/")
        return replace(self, pointer=to + self.pointer[len(place) :]) if is_there else self


class ModelCoreError(Exception):
    """Base of every error that a caller can act on.

    Attributes:
        code: Identifies the kind of error for programs; it does not change.
        hint: What to do about it.
        step: Training step at which it occurred.
        facts: Further fields of the `end` event.
    """

    code: ClassVar[str] = "failed"
    hint: str | None = None
    step: int | None = None
    facts: Mapping[str, Any] = MappingProxyType({})


class Stopped(ModelCoreError):
    """The process was asked to stop; what it has done is kept, and the same command continues from there."""

    code = "stopped"

    def __init__(self, reason: str | None) -> None:
        super().__init__(f"stopped by {reason}; the same command continues from here")
        self.reason = reason


class InvalidConfig(ModelCoreError):
    """A configuration with wrong values; the error has all of them."""

    code = "invalid_config"

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(f"{p.pointer}: {p.detail}" for p in problems))
        self.problems = problems


class NotAvailable(InvalidConfig):
    """A configuration is valid, but asks for a feature that this version does not have."""

    code = "not_available"


class PackageMissing(ModelCoreError):
    """A key needs an optional package that is not installed."""

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
        super().__init__(f"no configuration file at {path.resolve()}; presets are in configs/ and end in .yaml")


class UnknownPreset(ModelCoreError):
    """No preset has that name."""

    code = "unknown_preset"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no preset {name!r}; there are: {', '.join(known)}")


class InvalidParameter(ModelCoreError):
    """An argument outside what is allowed."""

    code = "invalid_parameter"


class InvalidParameters(InvalidParameter):
    """Wrong values of a request, each with its JSON pointer.

    Args:
        problems: The values.
    """

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(problems)
        shown_ones = (f"{p.pointer}: {p.detail}, got {shown(p.value)}" for p in self.problems[:_MAX_SHOWN])
        super().__init__("; ".join(shown_ones))


class InvalidData(ModelCoreError):
    """A data file is damaged or has the wrong content."""

    code = "invalid_data"


class PromptTooLong(ModelCoreError):
    """More prompt tokens than the model has positions.

    Args:
        tokens: Number of tokens.
        block_size: Positions of the model.
        pointer: JSON pointer of a text that `max_tokens` would cut.
    """

    code = "prompt_too_long"

    def __init__(self, tokens: int, block_size: int, *, pointer: str | None = None) -> None:
        super().__init__(f"the prompt has {tokens} tokens; the model takes at most {block_size}")
        if pointer is not None:
            self.problems = (FieldProblem(pointer, f"{self}", tokens, (block_size,)),)
            self.hint = f"max_tokens={block_size} cuts it"


class AttentionTooLarge(ModelCoreError):
    """Attention, or what is measured of it, does not fit in memory or on the disk.

    Args:
        detail: What is too large, the bound, and what fits.
        problems: The value of the request that makes it too large; its `nearest` is the largest that fits.
    """

    code = "attention_too_large"

    def __init__(self, detail: str, problems: Iterable[FieldProblem] = ()) -> None:
        super().__init__(detail)
        self.problems = tuple(problems)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Recognize an error about an allocation that failed, on any device.

    Args:
        error: Any error.

    Returns:
        Whether memory ran out.
    """
    if isinstance(error, OutOfMemory | MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR_MESSAGES)


class RunExists(ModelCoreError):
    """The name is taken: a run is created once."""

    code = "run_exists"

    def __init__(self, run: str, next_free: str) -> None:
        super().__init__(f"run {run!r} exists; the next free name is {next_free!r}")
        self.run, self.next_free = run, next_free
        self.hint = f"take another name (run={next_free}); by hand, --resume continues the run that exists"


class RunNotFound(ModelCoreError):
    """No run has that name."""

    code = "run_not_found"

    def __init__(self, run: str) -> None:
        super().__init__(f"no run {run!r}")


class RunBusy(ModelCoreError):
    """A process holds the run's lock, a job needs the run, or one of its checkpoints is pinned."""

    code = "run_busy"

    def __init__(self, run: str, why: str = "is held by another process") -> None:
        super().__init__(f"run {run!r} {why}")


class AttemptSuperseded(ModelCoreError):
    """A later attempt has taken the run: this process must not publish anything more."""

    code = "run_busy"

    def __init__(self, run: str, mine: int, current: int) -> None:
        super().__init__(f"attempt {mine} of run {run!r} was superseded by attempt {current}")


class CheckpointNotReady(ModelCoreError):
    """The run exists and has no checkpoint yet."""

    code = "checkpoint_not_ready"

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} has no checkpoint yet")


class TooFewCheckpoints(ModelCoreError):
    """An animation needs at least two steps.

    Args:
        run: Name of the run.
        steps: Number of steps that it has.
        kind: What a step needs, in the plural.
    """

    code = "too_few_checkpoints"

    def __init__(self, run: str, steps: int, kind: str = "checkpoints") -> None:
        super().__init__(f"an animation needs two steps or more, and run {run!r} has {kind} of {steps}")


class CheckpointNotFound(ModelCoreError):
    """The run has checkpoints, but not that one."""

    code = "checkpoint_not_found"

    def __init__(self, run: str, wanted: str, present: tuple[str, ...]) -> None:
        super().__init__(f"run {run!r} has no checkpoint {wanted!r}; it has: {', '.join(present)}")


class CheckpointDamaged(ModelCoreError):
    """The bytes of a checkpoint are not those that were written."""

    code = "checkpoint_damaged"

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"checkpoint {file!r} is damaged: {reason}")


class CheckpointKept(ModelCoreError):
    """A checkpoint must not be deleted."""

    code = "action_not_allowed"

    def __init__(self, run: str, file: str, reason: str) -> None:
        super().__init__(f"checkpoint {file!r} of run {run!r} is kept: {reason}")


class CheckpointFileNotFound(ModelCoreError):
    """There is no checkpoint at that path, and no run of that name."""

    code = "checkpoint_not_found"

    def __init__(self, reference: str) -> None:
        super().__init__(f"checkpoint.load_checkpoint {reference!r}: there is no such run and no such file")


class CheckpointRefused(ModelCoreError):
    """A file is intact, but its content is not loaded."""

    code = "invalid_parameter"

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"checkpoint {file!r} is refused: {reason}")
        self.hint = (
            "write it anew in the program that made it: torch.save({'model': model.state_dict(), 'model_args': "
            "{'n_layer': 12, 'n_head': 12, 'n_embd': 768, 'vocab_size': 50304, 'block_size': 1024}}, 'converted.pt')"
        )


class CheckpointMismatch(ModelCoreError):
    """A stated configuration and the checkpoint's own differ."""

    code = "checkpoint_mismatch"


class DatasetNotReady(ModelCoreError):
    """Files of a dataset are missing, and no job makes them.

    Attributes:
        request: Request to the service that would make it: method, path and body.
        job_id: The job that was to make it, or is making it.
    """

    code = "dataset_not_ready"
    request: Mapping[str, Any] | None = None
    job_id: str | None = None


class DataChanged(ModelCoreError):
    """A run cannot go on: its dataset holds other data than it was trained on."""

    code = "data_changed"

    def __init__(self, run: str, file: str, dataset: str, trained: str, found: str) -> None:
        super().__init__(
            f"run {run!r} was trained on data_sha256 {trained}, and dataset {dataset!r} now has data_sha256 {found}"
        )
        self.hint = (
            f"to train on the present data, start a new run from the checkpoint, with checkpoint.load_checkpoint: "
            f"{run}/{file}; to continue this run, put the former files back"
        )


class DatasetNotFound(ModelCoreError):
    """No dataset has that name, and none is being made."""

    code = "dataset_not_found"

    def __init__(self, dataset: str) -> None:
        super().__init__(f"no dataset {dataset!r}")


class DatasetExists(ModelCoreError):
    """The name is taken by a dataset that is, or is being, made in another way."""

    code = "dataset_exists"

    def __init__(self, dataset: str, next_free: str, why: str) -> None:
        super().__init__(f"dataset {dataset!r} exists: {why}; the next free name is {next_free!r}")
        self.dataset, self.next_free = dataset, next_free


class DatasetBusy(ModelCoreError):
    """A job that has not ended needs the dataset."""

    code = "dataset_busy"

    def __init__(self, dataset: str, job_id: str) -> None:
        super().__init__(f"dataset {dataset!r} is used by {job_id}, which is not over; wait, or cancel it")
        self.dataset, self.job_id = dataset, job_id


class ExampleNotFound(ModelCoreError):
    """The dataset has no test example of that number."""

    code = "example_not_found"

    def __init__(self, dataset: str, example: str, count: int) -> None:
        super().__init__(f"dataset {dataset!r} has no test example {example!r}; they are numbered 0 to {count - 1}")


class ResultNotFound(ModelCoreError):
    """A run has no result of that name."""

    code = "result_not_found"

    def __init__(self, run: str, name: str) -> None:
        super().__init__(f"run {run!r} has no result {name[:200]!r}")


class TextNotFound(ModelCoreError):
    """No text of that id was sent, or it was removed since."""

    code = "example_not_found"

    def __init__(self, run: str, text: str) -> None:
        super().__init__(f"run {run!r} has no text {text!r}")
        self.hint = "a text has an id once it was sent: POST /attention"


class DiskFull(ModelCoreError):
    """No space is left; the previous file is intact."""

    code = "disk_full"

    def __init__(self, path: Path, *, needed_bytes: int | None = None, free_bytes: int | None = None) -> None:
        sizes = "" if needed_bytes is None else f": {needed_bytes} bytes are needed, {free_bytes} are free"
        super().__init__(f"no space is left to write {path.name!r}{sizes}; the previous file is intact")
        self.hint = "free some space, then try again"
