"""The `job` section of a request: how an experiment is to be run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from model_core.config import Config, Name, Whole
from model_core.errors import FieldProblem
from model_core.loading import problems_of
from model_core.records.exports import LICENCE_PATTERN

Text = Annotated[str, StringConstraints(strict=True, max_length=512)]
Kind = Literal["train", "test", "prepare", "export"]
MOST_METADATA = 16  # pairs
JOB_ID = r"^job_[0-9a-f]{32}$"
Licence = Annotated[str, StringConstraints(strict=True, pattern=LICENCE_PATTERN)]
Label = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]


class Resources(Config):
    """What a job needs of a worker. Several GPUs are driven by as many processes, which train together."""

    gpus: Whole | None = Field(default=None, ge=0, le=64)  # None: one if the worker has any, else the CPU
    processes: Whole = Field(default=1, ge=1, le=1024)  # that train together, on the CPU unless there are as many GPUs


class JobSection(Config):
    """The part of the tree that the service reads and the trainer ignores."""

    preset: Name | None = None
    kind: Kind | None = None  # None: from `execution`
    resources: Resources = Resources()
    priority: Whole = Field(default=0, ge=-1000, le=1000)  # higher runs earlier
    licence: Licence | None = None  # of the model that an export writes, for its card
    metadata: dict[Label, Text] = Field(default={}, max_length=MOST_METADATA)
    depends_on: tuple[Annotated[str, StringConstraints(strict=True, pattern=JOB_ID)], ...] = Field(
        default=(), max_length=100
    )


class _Envelope(Config):
    job: JobSection = JobSection()


def job_section(tree: Mapping[str, Any]) -> tuple[JobSection, list[FieldProblem]]:
    """The section of a request, and what is wrong with it; one that is wrong keeps its preset, if that is a name."""
    try:
        job = _Envelope.model_validate({"job": tree["job"]} if tree.get("job") is not None else {}).job
    except ValidationError as error:
        section = tree["job"]
        preset = section.get("preset") if isinstance(section, dict) else None
        fallback = JobSection(preset=preset) if isinstance(preset, str) and _is_name(preset) else JobSection()
        return fallback, list(problems_of(error, _Envelope))
    return job, []


def _is_name(text: str) -> bool:
    try:
        return bool(JobSection(preset=text))
    except ValidationError:
        return False
