"""Runs as the disk tells them, with the status of the job that made them where Redis answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from model_core.errors import ModelCoreError
from model_core.records.checkpoint import CheckpointInfo
from model_core.records.errors import RunNotFound
from model_core.records.run import Run, runs_in
from service.deps import Services
from service.views.base import Listed
from service.views.run import CheckpointView, RunDetail, RunView, run_links
from worker.jobs.errors import JobNotFound
from worker.jobs.store import JobStore


async def page(services: Services, *, after: str | None, limit: int) -> Listed[RunView]:
    """List runs by name.

    Args:
        services: Where to ask.
        after: The last run of the page before.
        limit: How many at most.
    """
    every = await run_in_threadpool(runs_in, services.layout)
    rest = [run for run in every if after is None or run.name > after]
    chosen = rest[:limit]
    statuses = await _statuses(services, chosen)
    data = await run_in_threadpool(lambda: list(_views(chosen, statuses)))
    return Listed[RunView].of(data, [run.name for run in chosen], has_more=len(rest) > limit)


async def one(services: Services, name: str) -> RunDetail:
    """A run with its configuration.

    Raises:
        RunNotFound: There is none of that name.
    """
    run = await run_in_threadpool(lambda: Run.open(services.layout.run(name)))
    statuses = await _statuses(services, [run])
    return await run_in_threadpool(_detail, run, statuses)


async def _statuses(services: Services, runs: Sequence[Run]) -> Mapping[str, str]:
    """Status by job; empty while Redis is away, because the disk has to be enough."""
    jobs = await run_in_threadpool(lambda: [job for run in runs if (job := run.attempt()["job_id"])])
    try:
        return await services.ask(ask_each, services.store, jobs)
    except ModelCoreError:
        return {}


def ask_each(store: JobStore, jobs: Sequence[str]) -> dict[str, str]:
    """Status by job, of those that have a record."""
    statuses: dict[str, str] = {}
    for job in jobs:
        try:
            statuses[job] = store.get(job).status
        except JobNotFound:
            continue  # records may be lost; the run is not
    return statuses


def status_of(attempt: Mapping[str, Any], outcome: Mapping[str, Any] | None, statuses: Mapping[str, str]) -> str:
    """A run's status: its job's, else how its last attempt ended, else ``unknown``.

    Args:
        attempt: Who owns the run.
        outcome: How an attempt ended.
        statuses: By job.
    """
    is_over = outcome is not None and outcome["attempt"] == attempt["attempt"]
    return statuses.get(attempt["job_id"]) or (str(outcome["outcome"]) if outcome and is_over else "unknown")


def checkpoint_view(run: Run, info: CheckpointInfo) -> CheckpointView:
    """A checkpoint, and whether it is pinned."""
    return CheckpointView.of(info, pinned=run.is_pinned(info.file))


def _views(runs: Sequence[Run], statuses: Mapping[str, str]) -> Iterator[RunView]:
    for run in runs:
        with contextlib.suppress(FileNotFoundError):  # deleted while it was read
            yield _view(run, statuses)


def _detail(run: Run, statuses: Mapping[str, str]) -> RunDetail:
    try:
        return RunDetail(**dict(_view(run, statuses)), config=run.config())
    except FileNotFoundError:
        raise RunNotFound(run.name) from None


def _view(run: Run, statuses: Mapping[str, str]) -> RunView:
    attempt, outcome = run.attempt(), run.outcome()
    job = attempt["job_id"]
    return RunView(
        name=run.name,
        status=status_of(attempt, outcome, statuses),
        job=job,
        attempt=attempt["attempt"],
        created_at=_began(run),
        checkpoints=[checkpoint_view(run, info) for info in run.checkpoints()],
        outcome=outcome,
        links=run_links(run.name, job),
    )


def _began(run: Run) -> str | None:
    """When the first event was written."""
    with contextlib.suppress(FileNotFoundError, ValueError), run.events.open("rb") as file:
        return str(json.loads(file.readline())["time"])
    return None
