"""Datasets: listed, described, read in part and deleted.

The disk knows which are ready; Redis knows which are being prepared and why a preparation failed, and may be away.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.errors import DatasetBusy, DatasetNotFound, DatasetNotReady, InvalidData
from model_core.storage.dataset import SPLITS, Dataset, token_files
from model_core.storage.files import Layout
from model_core.storage.trash import empty_trash, lock_dataset, move_dataset_to_trash
from service.deps import Services
from service.schemas import Listed, View
from worker.jobs import commands
from worker.jobs.errors import QueueUnavailable
from worker.jobs.schemas import Job, JobError, Progress

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
    user = await services.async_store.run(commands.active_user(name))
    await one(services, name)
    if user is not None:
        raise DatasetBusy(name, user)
    await run_in_threadpool(_remove, services.layout, name)


def _remove(layout: Layout, name: str) -> None:
    with lock_dataset(layout, name):
        move_dataset_to_trash(layout, name, _DELETED)
    empty_trash(layout, _DELETED)


async def _names(services: Services, after: str | None, limit: int) -> tuple[list[str], bool]:
    """The next names in order, whatever is behind them, and whether Redis answered."""
    on_disk = await run_in_threadpool(_directories, services.layout)
    known, is_known = list[str](), True
    try:
        known = await services.async_store.run(commands.dataset_names(after=after, limit=limit))
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
        return await services.async_store.run(commands.dataset_jobs(names))
    except QueueUnavailable:
        return [None] * len(names)


async def _maker(services: Services, name: str, *, is_ready: bool) -> Job | None:
    """The last job that was to make it; the disk has to be enough for what is ready."""
    try:
        [maker] = await services.async_store.run(commands.dataset_jobs([name]))
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


log = logging.getLogger(__name__)

_MOST_CHARACTERS = 1 << 22  # of a page of examples: each may be as long as its source lets it
_SUMS = ("documents", "tokens", "text_bytes", "size_bytes")


def statistics_of(dataset: Dataset) -> DatasetStatistics:
    """Count a dataset, split by split and in sum."""
    manifest = manifest_of(dataset) or {}
    splits = manifest.get("splits") or {split: _counted(dataset, split) for split in SPLITS}
    categories = manifest.get("categories")
    return DatasetStatistics(
        dataset=dataset.name,
        duplicates=manifest.get("duplicates"),
        splits={split: _split(facts) for split, facts in splits.items()},
        categories=None
        if categories is None
        else {name: CategoryStatistics.model_validate(facts) for name, facts in categories.items()},
        examples=dataset.example_count,
        **dict(_split(sums_of(splits))),
    )


def manifest_of(dataset: Dataset) -> dict[str, Any] | None:
    """What preparation recorded; None of files put there by hand, and where the record cannot be read."""
    try:
        return dataset.manifest()
    except InvalidData as error:
        log.warning("manifest unreadable dataset=%s reason=%s", dataset.name, error)
        return None


def _split(facts: Mapping[str, Any]) -> SplitStatistics:
    kept = {key: facts.get(key) for key in _SUMS}
    documents, tokens = kept["documents"], kept["tokens"]
    return SplitStatistics(**kept, tokens_per_document=round(tokens / documents, 2) if documents and tokens else None)


def sums_of(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """Sums over the splits; None where one of them does not say."""
    return {key: _sum([facts.get(key) for facts in splits.values()]) for key in _SUMS}


def _sum(column: Sequence[int | None]) -> int | None:
    known = [value for value in column if value is not None]
    return sum(known) if known and len(known) == len(column) else None


def _counted(dataset: Dataset, split: str) -> dict[str, int | None]:
    """What a token file tells that was put there by hand."""
    paths = token_files(dataset.split(split))
    size_bytes = sum(path.stat().st_size for path in paths)
    try:
        tokens = sum(int(np.load(path, mmap_mode="r").size) for path in paths)
    except (ValueError, EOFError, OSError):  # whoever trains on it is told
        return {"tokens": None, "size_bytes": size_bytes}
    return {"tokens": tokens, "size_bytes": size_bytes}


def example_of(dataset: Dataset, number: int) -> ExampleView:
    """One document of the test split.

    Raises:
        ExampleNotFound: It has fewer.
    """
    found = dataset.example(number)
    return ExampleView(dataset=dataset.name, id=found.id, text=found.text, tokens=list(found.tokens))


def examples_of(dataset: Dataset, *, after: int | None, limit: int) -> Listed[ExampleView]:
    """Documents of the test split, in order.

    Args:
        dataset: Whose.
        after: Number of the last of the page before.
        limit: How many at most; fewer where they are long.
    """
    first, count = 0 if after is None else after + 1, dataset.example_count
    shown, characters = list[ExampleView](), 0
    for number in range(first, min(first + limit, count)):
        shown.append(example_of(dataset, number))
        characters += len(shown[-1].text)
        if characters > _MOST_CHARACTERS:
            break
    has_more = bool(shown) and shown[-1].id + 1 < count
    return Listed[ExampleView].of(shown, [item.id for item in shown], has_more=has_more)


State = Literal["ready", "preparing", "failed", "cancelled"]


class DatasetLinks(View):
    """Where to go from a dataset."""

    self_: str = Field(serialization_alias="self")
    statistics: str
    examples: str
    job: str | None


class DatasetView(View):
    """A dataset, and the last job that was to make it."""

    object: Literal["dataset"] = "dataset"
    name: str
    state: State
    job: str | None = Field(description="the last job that makes or made it here, if it is known")
    progress: Progress | None = Field(description="while it is being prepared")
    error: JobError | None = Field(description="why the job failed, while the dataset is not there")
    source: str | None
    revision: str | None
    created_at: str | None
    documents: int | None
    tokens: int | None
    links: DatasetLinks


class DatasetDetail(DatasetView):
    """A dataset with its manifest."""

    manifest: dict[str, Any] | None = Field(description="null while it is not ready, and of files put there by hand")


class SplitStatistics(View):
    """What is in a part of a dataset; null where nobody counted it."""

    documents: int | None
    tokens: int | None
    text_bytes: int | None
    size_bytes: int | None
    tokens_per_document: float | None


class CategoryStatistics(View):
    """What is in a category of the source."""

    documents: int
    tokens: int
    text_bytes: int


class DatasetStatistics(SplitStatistics):
    """What is in a dataset, in all and in each split."""

    object: Literal["dataset_statistics"] = "dataset_statistics"
    dataset: str
    duplicates: int | None = Field(description="exact duplicates that were dropped; null: nobody looked for them")
    splits: dict[str, SplitStatistics]
    categories: dict[str, CategoryStatistics] | None
    examples: int = Field(description="documents of the test split that can be looked at")


class ExampleView(View):
    """One document of the test split."""

    object: Literal["example"] = "example"
    dataset: str
    id: int
    text: str
    tokens: list[int]
