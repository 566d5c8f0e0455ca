"""Datasets: made by a job, looked at on disk, deleted.

The disk says what is ready; Redis knows what is being made and why it was not, and need not answer for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.concurrency import run_in_threadpool

from model_core.records.dataset import Dataset
from model_core.records.errors import DatasetBusy, DatasetNotFound, DatasetNotReady
from model_core.records.files import Layout
from model_core.records.removal import hide_dataset, holding_dataset, remove_hidden
from service.contents import example_of, examples_of, manifest_of, statistics_of, sums_of
from service.deps import Services
from service.views.base import Listed
from service.views.dataset import DatasetDetail, DatasetLinks, DatasetStatistics, DatasetView, ExampleView, State
from worker.jobs import questions
from worker.jobs.errors import QueueUnavailable
from worker.jobs.job import Job

_DELETED = "dataset"  # whose the hidden name of a deleted dataset is


async def page(services: Services, *, after: str | None, limit: int) -> Listed[DatasetView]:
    """List datasets by name: those on disk, and those that some job is to make.

    Args:
        services: Where to ask.
        after: The last dataset of the page before.
        limit: How many at most.
    """
    data: list[DatasetView] = []
    while len(data) <= limit:
        names, is_known = await _names(services, after, limit + 1)
        makers = await _makers(services, names) if is_known else [None] * len(names)
        for name, maker in zip(names, makers, strict=True):
            data += filter(None, [await _view(services, name, maker)])
        if len(names) <= limit:
            break
        after = names[-1]
    shown = data[:limit]
    return Listed[DatasetView].of(shown, [view.name for view in shown], has_more=len(data) > limit)


async def one(services: Services, name: str) -> DatasetDetail:
    """A dataset with its manifest.

    Raises:
        DatasetNotFound: There is none of that name, and none is being made.
        QueueUnavailable: It is not there, and nobody can say whether it is being made.
    """
    dataset = await _on_disk(services, name)
    maker = await _maker(services, name, is_ready=dataset is not None)
    view = await _view(services, name, maker)
    if view is None:
        raise DatasetNotFound(name)
    manifest = await run_in_threadpool(manifest_of, dataset) if dataset is not None else None
    return DatasetDetail(**dict(view), manifest=manifest)


async def statistics(services: Services, name: str) -> DatasetStatistics:
    """What is in a dataset.

    Raises:
        DatasetNotFound: There is none of that name.
        DatasetNotReady: It is being made, or that failed.
    """
    return await run_in_threadpool(statistics_of, await _ready(services, name))


async def example(services: Services, name: str, number: int) -> ExampleView:
    """One document of the test split, without reading the others.

    Raises:
        DatasetNotFound: There is no dataset of that name.
        DatasetNotReady: It is being made, or that failed.
        ExampleNotFound: It has fewer.
    """
    return await run_in_threadpool(example_of, await _ready(services, name), number)


async def examples(services: Services, name: str, *, after: int | None, limit: int) -> Listed[ExampleView]:
    """Documents of the test split, in order.

    Args:
        services: Where to ask.
        name: The dataset's.
        after: Number of the last of the page before.
        limit: How many at most; fewer where they are long.
    """
    dataset = await _ready(services, name)
    return await run_in_threadpool(partial(examples_of, dataset, after=after, limit=limit))


async def delete(services: Services, name: str) -> None:
    """Free a dataset's bytes, with the files that were uploaded for it.

    Raises:
        DatasetNotFound: There is nothing of that name.
        DatasetBusy: A job that is not over makes or reads it, or a preparation by hand is at it.
    """
    user = await services.ask(services.store.user, name)
    await one(services, name)
    if user is not None:
        raise DatasetBusy(name, user)
    await run_in_threadpool(_remove, services.layout, name)


def _remove(layout: Layout, name: str) -> None:
    with holding_dataset(layout, name):
        hide_dataset(layout, name, _DELETED)
    remove_hidden(layout, _DELETED)


async def _names(services: Services, after: str | None, limit: int) -> tuple[list[str], bool]:
    """The next names in order, whatever is behind them, and whether Redis answered."""
    on_disk = await run_in_threadpool(_directories, services.layout)
    known, is_known = list[str](), True
    try:
        known = await services.wire.ask(questions.datasets(after=after, limit=limit))
    except QueueUnavailable:
        is_known = False
    return sorted({*(name for name in on_disk if after is None or name > after), *known})[:limit], is_known


def _directories(layout: Layout) -> list[str]:
    assert layout.datasets is not None
    if not layout.datasets.is_dir():
        return []
    return [path.name for path in layout.datasets.iterdir() if not path.name.startswith(".") and path.is_dir()]


async def _makers(services: Services, names: Sequence[str]) -> list[Job | None]:
    try:
        return await services.wire.ask(questions.makers(names))
    except QueueUnavailable:
        return [None] * len(names)


async def _maker(services: Services, name: str, *, is_ready: bool) -> Job | None:
    """The last job that was to make it; the disk has to be enough for what is ready."""
    try:
        [maker] = await services.wire.ask(questions.makers([name]))
    except QueueUnavailable:
        if not is_ready:
            raise
        return None
    return maker


async def _on_disk(services: Services, name: str) -> Dataset | None:
    """The dataset, if it is ready."""
    dataset = Dataset.named(name, services.layout.dataset(name))
    return None if await run_in_threadpool(dataset.missing) else dataset


async def _ready(services: Services, name: str) -> Dataset:
    dataset = await _on_disk(services, name)
    if dataset is not None:
        return dataset
    maker = await _maker(services, name, is_ready=False)
    state = _state(maker, is_ready=False)
    if maker is None or state is None:
        raise DatasetNotFound(name)
    error = DatasetNotReady(f"dataset {name!r} is not ready: its preparation, {maker.id}, is {maker.status}")
    error.job_id = maker.id
    raise error


def _state(maker: Job | None, *, is_ready: bool) -> State | None:
    """What is to be said of a dataset; None: nothing, there is none."""
    if is_ready:
        return "ready"
    if maker is None or maker.status == "succeeded":  # and somebody removed it since
        return None
    return maker.status if maker.status in ("failed", "cancelled") else "preparing"


async def _view(services: Services, name: str, maker: Job | None) -> DatasetView | None:
    dataset = await _on_disk(services, name)
    manifest = await run_in_threadpool(manifest_of, dataset) if dataset is not None else None
    state = _state(maker, is_ready=dataset is not None)
    if state is None:
        return None
    told, sums = manifest or {}, sums_of((manifest or {}).get("splits", {}))
    here = f"/datasets/{name}"
    return DatasetView(
        name=name,
        state=state,
        job=maker.id if maker is not None else None,
        progress=maker.progress if maker is not None and state == "preparing" else None,
        error=maker.error if maker is not None and state == "failed" else None,
        source=told.get("source"),
        revision=told.get("revision"),
        created_at=told.get("created_at"),
        documents=sums["documents"],
        tokens=sums["tokens"],
        links=DatasetLinks(
            self_=here,
            statistics=f"{here}/statistics",
            examples=f"{here}/examples",
            job=f"/jobs/{maker.id}" if maker is not None else None,
        ),
    )
