"""Runs as the disk tells them."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlencode

from pydantic import Field

from model_core.config import ExperimentConfig
from model_core.records.checkpoint import CheckpointInfo
from service.views.base import View


class CheckpointView(View):
    """A checkpoint of a run, as its sidecar says."""

    object: Literal["checkpoint"] = "checkpoint"
    file: str
    step: int
    loss: float | None
    val_loss: float | None
    full: bool
    sha256: str
    size_bytes: int
    created_at: str

    @classmethod
    def of(cls, info: CheckpointInfo) -> Self:
        """From the record on disk."""
        return cls(**{name: getattr(info, name) for name in cls.model_fields if name != "object"})


class RunLinks(View):
    """Where to go from a run."""

    self_: str = Field(serialization_alias="self")
    job: str | None
    generate: str
    attention: str
    report: str


class RunView(View):
    """One training result on disk."""

    object: Literal["run"] = "run"
    name: str
    status: str = Field(description="its job's status; without a job: succeeded, failed, stopped or unknown")
    job: str | None
    attempt: int
    created_at: str | None
    checkpoints: list[CheckpointView]
    outcome: dict[str, Any] | None
    links: RunLinks


class RunDetail(RunView):
    """A run with its configuration."""

    config: ExperimentConfig


def run_links(name: str, job: str | None) -> RunLinks:
    """Where to go from a run."""
    return RunLinks(
        self_=f"/runs/{name}",
        job=f"/jobs/{job}" if job else None,
        generate=f"/generate?{urlencode({'run': name})}",
        attention=f"/attention/{name}/0",
        report=f"/runs/{name}/report",
    )
