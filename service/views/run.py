"""Runs as the disk tells them."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlencode

from pydantic import Field

from model_core.config import ExperimentConfig
from model_core.records.checkpoint import CheckpointInfo
from model_core.records.exports import ExportInfo
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
    pinned: bool

    @classmethod
    def of(cls, info: CheckpointInfo, *, pinned: bool) -> Self:
        """From the record on disk."""
        told = {name: getattr(info, name) for name in cls.model_fields if name not in {"object", "pinned"}}
        return cls(**told, pinned=pinned)


class ExportLinks(View):
    """Where to go from an export."""

    run: str
    safetensors: str | None = Field(description="its tensors; null once the run has another checkpoint of that name")


class ExportView(View):
    """A folder of transformers that a checkpoint was written to."""

    object: Literal["export"] = "export"
    name: str
    run: str
    checkpoint: str = Field(description="the file that it was made of")
    sha256: str | None = Field(description="of that file; null once the run has another of that name")
    size_bytes: int = Field(description="of all its files")
    created_at: str
    licence: str | None = Field(description="of the model, as its card states it")
    links: ExportLinks

    @classmethod
    def of(cls, run: str, info: ExportInfo) -> Self:
        """From what lies on disk."""
        content = f"/runs/{run}/checkpoints/{info.file}/content?format=safetensors"
        return cls(
            name=info.name,
            run=run,
            checkpoint=info.file,
            sha256=info.sha256,
            size_bytes=info.size_bytes,
            created_at=info.created_at,
            licence=info.licence,
            links=ExportLinks(run=f"/runs/{run}", safetensors=content if info.sha256 else None),
        )


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
