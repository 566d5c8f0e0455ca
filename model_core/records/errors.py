"""What records on disk may be instead of what was asked for: not there, taken, held, damaged, or without room.

Runs, their checkpoints, datasets and their examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_core.errors import ModelCoreError


class RunExists(ModelCoreError):
    """The name is taken: a run is created once."""

    code = "run_exists"

    def __init__(self, run: str, next_free: str) -> None:
        super().__init__(f"run {run!r} exists; the next free name is {next_free!r}")
        self.run, self.next_free = run, next_free
        self.hint = f"take another name (run={next_free}); by hand, --resume goes on with the run that exists"


class RunNotFound(ModelCoreError):
    """No run has that name."""

    code = "run_not_found"

    def __init__(self, run: str) -> None:
        super().__init__(f"no run {run!r}")


class RunBusy(ModelCoreError):
    """Another process holds the run's lock."""

    code = "run_busy"

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} is held by another process")


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
    """A checkpoint that must not go."""

    code = "action_not_allowed"

    def __init__(self, run: str, file: str, reason: str) -> None:
        super().__init__(f"checkpoint {file!r} of run {run!r} is kept: {reason}")


class CheckpointFileNotFound(ModelCoreError):
    """There is no checkpoint at that path, and no run of that name."""

    code = "checkpoint_not_found"

    def __init__(self, reference: str) -> None:
        super().__init__(f"checkpoint.load_checkpoint {reference!r}: no run has that name, and no file lies there")


class CheckpointRefused(ModelCoreError):
    """A file that is intact, but is not loaded for what it holds."""

    code = "invalid_parameter"

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"checkpoint {file!r} is refused: {reason}")
        self.hint = (
            "write it anew in the program that made it: torch.save({'model': model.state_dict(), 'model_args': "
            "{'n_layer': 12, 'n_head': 12, 'n_embd': 768, 'vocab_size': 50304, 'block_size': 1024}}, 'converted.pt')"
        )


class CheckpointMismatch(ModelCoreError):
    """A written configuration and the checkpoint's own differ."""

    code = "checkpoint_mismatch"


class DatasetNotReady(ModelCoreError):
    """A dataset's files are missing, and nothing makes them now.

    Attributes:
        request: The request to the service that would make it: method, path and body.
        job_id: The job that was to make it, or is at it.
    """

    code = "dataset_not_ready"
    request: Mapping[str, Any] | None = None
    job_id: str | None = None


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
    """A job that is not over needs the dataset."""

    code = "dataset_busy"

    def __init__(self, dataset: str, job_id: str) -> None:
        super().__init__(f"dataset {dataset!r} is used by {job_id}, which is not over; wait, or cancel it")
        self.dataset, self.job_id = dataset, job_id


class ExampleNotFound(ModelCoreError):
    """The dataset has no test example of that number."""

    code = "example_not_found"

    def __init__(self, dataset: str, example: str, count: int) -> None:
        super().__init__(f"dataset {dataset!r} has no test example {example!r}; they are numbered 0 to {count - 1}")


class DiskFull(ModelCoreError):
    """No space is left; the previous file is intact."""

    code = "disk_full"

    def __init__(self, path: Path, *, needed_bytes: int | None = None, free_bytes: int | None = None) -> None:
        sizes = "" if needed_bytes is None else f": {needed_bytes} bytes are needed, {free_bytes} are free"
        super().__init__(f"no space is left to write {path.name!r}{sizes}; the previous file is intact")
