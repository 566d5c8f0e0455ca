"""Runs as clients see them: from their directories, with the status of their jobs if Redis answers.

A list is read from small files; of a configuration it takes the section `model` alone, and keeps it until the file
changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlencode

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.config import ExperimentConfig
from model_core.errors import ModelCoreError, RunNotFound
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.run import Run, runs_in
from service.deps import Services
from service.schemas import Listed, View, link
from worker.jobs.commands import keep_colour
from worker.jobs.errors import JobNotFound
from worker.jobs.schemas import ModelShape
from worker.jobs.store import JobStore


class CheckpointView(View):
    """A checkpoint of a run, from its sidecar."""

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
        """Build the view.

        Args:
            info: The record of the checkpoint.
            pinned: Whether the checkpoint is pinned.

        Returns:
            The view.
        """
        recorded = {name: getattr(info, name) for name in cls.model_fields if name not in {"object", "pinned"}}
        return cls(**recorded, pinned=pinned)


class RunLinks(View):
    """Links of a run."""

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
    colour: int | None = Field(description="0 to 7, for ever the same; null only while Redis is away")
    model: ModelShape | None
    checkpoint_count: int
    step: int | None = Field(description="the newest step with a checkpoint")
    val_loss: float | None = Field(description="the lowest of its checkpoints")
    size_bytes: int = Field(description="of its checkpoints")
    outcome: dict[str, Any] | None
    links: RunLinks


class RunDetail(RunView):
    """A run with its checkpoints and its configuration."""

    checkpoints: list[CheckpointView]
    config: ExperimentConfig


async def list_runs(services: Services, *, after: str | None, limit: int) -> Listed[RunView]:
    """List runs by name.

    Args:
        services: Services of the process.
        after: Last run of the previous page; None begins at the first.
        limit: Largest number of runs.

    Returns:
        One page.
    """
    every = await run_in_threadpool(runs_in, services.layout)
    rest = [run for run in every if after is None or run.name > after]
    chosen = rest[:limit]
    statuses, colours = await asyncio.gather(_statuses(services, chosen), _colours(services, chosen))
    data = await run_in_threadpool(lambda: list(_views(chosen, statuses, colours)))
    return Listed[RunView].of(data, [run.name for run in chosen], has_more=len(rest) > limit)


async def get_run(services: Services, name: str) -> RunDetail:
    """Look up a run.

    Args:
        services: Services of the process.
        name: Name of the run.

    Returns:
        The run with its configuration.

    Raises:
        RunNotFound: There is no such run.
    """
    run = await run_in_threadpool(lambda: Run.open(services.layout.run(name)))
    statuses, colours = await asyncio.gather(_statuses(services, [run]), _colours(services, [run]))
    return await run_in_threadpool(_detail, run, statuses, colours)


def job_statuses(store: JobStore, jobs: Sequence[str]) -> dict[str, str]:
    """Read the status of jobs.

    Args:
        store: The job store.
        jobs: Ids of the jobs.

    Returns:
        Status by id, without jobs that have no record.
    """
    statuses: dict[str, str] = {}
    for job in jobs:
        try:
            statuses[job] = store.get(job).status
        except JobNotFound:
            continue  # Redis may lose a job; the run remains
    return statuses


def run_status(attempt: Mapping[str, Any], outcome: Mapping[str, Any] | None, statuses: Mapping[str, str]) -> str:
    """Derive the status of a run: its job's, else the outcome of its last attempt, else `unknown`.

    Args:
        attempt: The attempt file of the run.
        outcome: The outcome file of the run, if an attempt has ended.
        statuses: Status by job.

    Returns:
        The status.
    """
    is_over = outcome is not None and outcome["attempt"] == attempt["attempt"]
    return statuses.get(attempt["job_id"]) or (str(outcome["outcome"]) if outcome and is_over else "unknown")


def checkpoint_view(run: Run, info: CheckpointInfo) -> CheckpointView:
    """Describe a checkpoint.

    Args:
        run: The run.
        info: The record of the checkpoint.

    Returns:
        The view, with whether the checkpoint is pinned.
    """
    return CheckpointView.of(info, pinned=run.is_pinned(info.file))


async def _statuses(services: Services, runs: Sequence[Run]) -> Mapping[str, str]:
    """Status by job; empty while Redis is unreachable, because runs are served from disk."""
    jobs = await run_in_threadpool(lambda: [job for run in runs if (job := run.attempt()["job_id"])])
    try:
        return await services.ask(job_statuses, services.store, jobs)
    except ModelCoreError:
        return {}


async def _colours(services: Services, runs: Sequence[Run]) -> Mapping[str, int]:
    """Colour by run; one without a colour gets it: made by hand, imported, or by an earlier version."""
    known, lacking = await run_in_threadpool(_known_colours, runs)
    given = await asyncio.gather(*(_new_colour(services, run, created_at_ms) for run, created_at_ms in lacking))
    return known | {run.name: colour for (run, _), colour in zip(lacking, given, strict=True) if colour is not None}


def _known_colours(runs: Sequence[Run]) -> tuple[dict[str, int], list[tuple[Run, int]]]:
    """Colours on disk, and the runs without one, each with the time of its creation in milliseconds."""
    known, lacking = dict[str, int](), list[tuple[Run, int]]()
    for run in runs:
        with contextlib.suppress(ModelCoreError, OSError):  # deleted meanwhile
            colour = run.colour()
            if colour is None:
                lacking.append((run, run.created_at_ms()))
            else:
                known[run.name] = colour
    return known, lacking


async def _new_colour(services: Services, run: Run, created_at_ms: int) -> int | None:
    """Give a run its colour; None while Redis is unreachable, or if the run was deleted meanwhile."""
    colour = None
    with contextlib.suppress(ModelCoreError, OSError):  # or the data root is read-only
        colour = await services.async_store.run(keep_colour(run.name, created_at_ms=created_at_ms))
        await run_in_threadpool(run.keep_colour, colour)
    return colour


def _views(runs: Sequence[Run], statuses: Mapping[str, str], colours: Mapping[str, int]) -> Iterator[RunView]:
    for run in runs:
        with contextlib.suppress(FileNotFoundError):  # deleted while it was read
            yield RunView(**_facts(run, run.checkpoints(), statuses), colour=colours.get(run.name))


def _detail(run: Run, statuses: Mapping[str, str], colours: Mapping[str, int]) -> RunDetail:
    try:
        found = run.checkpoints()
        views = [checkpoint_view(run, info) for info in found]
        return RunDetail(
            **_facts(run, found, statuses), colour=colours.get(run.name), checkpoints=views, config=run.config()
        )
    except FileNotFoundError:
        raise RunNotFound(run.name) from None


def _facts(run: Run, checkpoints: Sequence[CheckpointInfo], statuses: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a `RunView`."""
    attempt, outcome = run.attempt(), run.outcome()
    job = attempt["job_id"]
    return {
        "name": run.name,
        "status": run_status(attempt, outcome, statuses),
        "job": job,
        "attempt": attempt["attempt"],
        "created_at": run.began(),
        "model": _model(run),
        "checkpoint_count": len(checkpoints),
        "step": max((info.step for info in checkpoints), default=None),
        "val_loss": min((info.val_loss for info in checkpoints if info.val_loss is not None), default=None),
        "size_bytes": sum(info.size_bytes for info in checkpoints),
        "outcome": outcome,
        "links": _run_links(run.name, job),
    }


def _model(run: Run) -> ModelShape | None:
    facts = (run.path / "config.yaml").stat()
    return _model_of(run.path, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=4096)
def _model_of(path: Path, _modified_ns: int, _inode: int) -> ModelShape | None:
    try:
        return ModelShape.of(Run(path).model())
    except (ModelCoreError, ValueError):  # damaged: the look at the run alone reports it
        return None


def _run_links(name: str, job: str | None) -> RunLinks:
    return RunLinks(
        self_=link(f"/runs/{name}"),
        job=link(f"/jobs/{job}") if job else None,
        generate=link(f"/generate?{urlencode({'run': name})}"),
        attention=link(f"/attention/{name}/0"),
        report=link(f"/runs/{name}/report"),
    )
