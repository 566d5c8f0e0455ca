"""What the service answers, resource by resource: these classes are also what /openapi.json says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field

from model_core.budget import Budget
from model_core.config import ExperimentConfig
from model_core.loading import Advice
from model_core.records.checkpoint import CheckpointInfo
from worker.jobs.job import Job, JobDetail, Warned

T = TypeVar("T")


class View(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class Listed(View, Generic[T]):
    """One page of a list; `last_id` is the next page's `after`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | int | None = None
    last_id: str | int | None = None
    has_more: bool = False

    @classmethod
    def of(cls, data: Sequence[T], ids: Sequence[str | int], *, has_more: bool) -> Self:
        """A page with the ids of its ends."""
        return cls(
            data=list(data),
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
            has_more=has_more,
        )


# --- jobs ------------------------------------------------------------------------------------------------------


class JobLinks(View):
    """Where the rest of a job is."""

    self_: str = Field(serialization_alias="self")
    events: str
    logs: str
    metrics: str
    run: str
    cancel: str


class JobView(Job):
    """A job with its links."""

    links: JobLinks

    @classmethod
    def of(cls, job: Job) -> Self:
        """Add the links to a record."""
        return cls(**job.__dict__, links=_job_links(job.id, job.run))


class JobDetailView(JobDetail):
    """A job with its attempts and its links."""

    links: JobLinks

    @classmethod
    def of(cls, job: JobDetail) -> Self:
        """Add the links to a record."""
        return cls(**job.__dict__, links=_job_links(job.id, job.run))


@lru_cache(maxsize=2048)
def _job_links(job_id: str, run: str) -> JobLinks:
    here = f"/jobs/{job_id}"
    more = {name: f"{here}/{name}" for name in ("events", "logs", "metrics", "cancel")}
    return JobLinks(self_=here, run=f"/runs/{run}", **more)


class EventView(BaseModel):
    """One line of events.jsonl; the fields that depend on `type` follow these."""

    model_config = ConfigDict(extra="allow", frozen=True)

    seq: int
    time: str
    attempt: int
    type: str


class Validation(View):
    """What a submission would be: nothing was made."""

    object: Literal["validation"] = "validation"
    kind: str
    run: str
    config: ExperimentConfig
    budget: dict[str, Any] = Field(description="parameters, FLOPs, memory, disk and steps, layer by layer and in sum")
    warnings: list[Warned]

    @classmethod
    def of(cls, kind: str, config: ExperimentConfig, budget: Budget, warnings: Sequence[Advice]) -> Self:
        """Put together what was found."""
        return cls(
            kind=kind,
            run=config.experiment_name,
            config=config,
            budget=budget.to_dict(),
            warnings=[Warned(code=item.code, detail=item.detail) for item in warnings],
        )


# --- runs ------------------------------------------------------------------------------------------------------


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


# --- attention -------------------------------------------------------------------------------------------------


class LayerView(View):
    """One layer of a captured text."""

    layer: int
    n_head: int
    head_dim: int
    png: str = Field(description="name of the picture's file on disk; links.layers has its address")


class AttentionLinks(View):
    """Where to go from a captured text."""

    self_: str = Field(serialization_alias="self")
    sheet: str
    layers: list[str]
    run: str


class AttentionView(View):
    """What was captured of one text under one checkpoint."""

    object: Literal["attention"] = "attention"
    run: str
    id: str
    checkpoint: str
    step: int
    sha256: str
    text: str
    tokens: list[str]
    truncated_from: int | None = None
    layers: list[LayerView]
    links: AttentionLinks

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """From the manifest on disk; the links name the checkpoint by its hash, so what they show never changes."""
        here = f"/attention/{manifest['run']}/{quote(manifest['id'])}"
        keyed = urlencode({"checkpoint": f"sha256={manifest['sha256']}", "max_tokens": len(manifest["tokens"])})
        links = AttentionLinks(
            self_=f"{here}?{keyed}",
            sheet=f"{here}?{keyed}&format=png",
            layers=[f"{here}/{layer['png']}?{keyed}" for layer in manifest["layers"]],
            run=f"/runs/{manifest['run']}",
        )
        shown = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "links": links})


# --- the rest --------------------------------------------------------------------------------------------------


class PresetView(View):
    """A configuration that ships."""

    object: Literal["config"] = "config"
    name: str
    links: dict[str, str]


class Check(View):
    """One thing that the service needs."""

    ok: bool
    detail: str


class Health(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(View):
    """Everything that the service needs is there."""

    status: Literal["ready"] = "ready"
    checks: dict[str, Check]


class Welcome(View):
    """Where to begin."""

    name: Literal["headcount"] = "headcount"
    version: str
    links: dict[str, str]


class ProblemField(View):
    """One wrong value."""

    pointer: str
    detail: str
    value: Any = None
    nearest: list[Any] = []
    code: str = "invalid"


class Problem(BaseModel):
    """RFC 9457; further members depend on the code."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemField]
    request_id: str
