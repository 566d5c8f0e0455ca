"""Datasets: views, list, statistics, examples and deletion.

The disk shows which datasets are ready. Redis knows which are being prepared and why a preparation failed, and may be
unreachable.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.errors import DatasetBusy, DatasetNotFound, DatasetNotReady, InvalidData
from model_core.storage.dataset import MANIFEST, SPLITS, Dataset, token_files
from model_core.storage.files import Layout
from model_core.storage.trash import empty_trash, lock_dataset, move_dataset_to_trash
from model_core.tokenizer import Tokenizer
from service.deps import Services
from service.schemas import Listed, View, link
from worker.jobs import commands
from worker.jobs.errors import QueueUnavailable
from worker.jobs.schemas import Job, JobError, Progress

log = logging.getLogger(__name__)

_TRASH_OWNER = "dataset"  # part of the hidden name of a deleted dataset
_MAX_PAGE_CHARACTERS = 1 << 22  # of examples, whose length only their source limits
_MAX_TOKENIZERS = 4  # in memory
_SUMS = ("documents", "tokens", "text_bytes", "size_bytes")

State = Literal["ready", "preparing", "failed", "cancelled"]


class DatasetLinks(View):
    """Links of a dataset."""

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

    reading: dict[str, Any] | None = Field(
        description="how the source was read: documents, their shortest, median and longest length in characters, the "
        "first two, and what was found in them; null while it is not ready, and for datasets of earlier versions"
    )
    manifest: dict[str, Any] | None = Field(description="null while it is not ready, and of files put there by hand")


class SplitStatistics(View):
    """Contents of a split of a dataset; null where not counted."""

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
    duplicates: int | None = Field(description="exact duplicates that were dropped; null: not counted")
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
    pieces: list[str] | None = Field(
        description="text of each token; `bytes:` and its bytes where it is no whole character; null where the "
        "dataset's tokenizer cannot be read"
    )


async def list_datasets(services: Services, *, after: str | None, limit: int) -> Listed[DatasetView]:
    """List datasets by name: those on disk, and those that a job makes or failed to make.

    Args:
        services: Services of the process.
        after: Last dataset of the previous page; None begins at the first.
        limit: Largest number of datasets.

    Returns:
        One page.
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


async def get_dataset(services: Services, name: str) -> DatasetDetail:
    """Look up a dataset.

    Args:
        services: Services of the process.
        name: Name of the dataset.

    Returns:
        The dataset with its manifest.

    Raises:
        DatasetNotFound: No such dataset exists or is being made.
        QueueUnavailable: It is not on disk, and Redis cannot tell whether it is being made.
    """
    dataset = await _on_disk(services, name)
    maker = await _maker(services, name, is_ready=dataset is not None)
    view = await _view(services, name, maker)
    if view is None:
        raise DatasetNotFound(name)
    manifest = await run_in_threadpool(read_manifest, dataset) if dataset is not None else None
    return DatasetDetail(**dict(view), reading=(manifest or {}).get("reading"), manifest=manifest)


async def get_statistics(services: Services, name: str) -> DatasetStatistics:
    """Count what a dataset holds.

    Args:
        services: Services of the process.
        name: Name of the dataset.

    Returns:
        Counts in all, by split and by category.

    Raises:
        DatasetNotFound: No such dataset exists or is being made.
        DatasetNotReady: Its preparation is not finished, or failed.
    """
    return await run_in_threadpool(_statistics, await _ready(services, name))


async def get_example(services: Services, name: str, number: int) -> ExampleView:
    """Read one document of the test split, without reading the others.

    Args:
        services: Services of the process.
        name: Name of the dataset.
        number: Number of the document, from 0.

    Returns:
        Its text and tokens.

    Raises:
        DatasetNotFound: No such dataset exists or is being made.
        DatasetNotReady: Its preparation is not finished, or failed.
        ExampleNotFound: The split has fewer documents.
    """
    return await run_in_threadpool(_example, await _ready(services, name), number)


async def list_examples(services: Services, name: str, *, after: int | None, limit: int) -> Listed[ExampleView]:
    """Read documents of the test split, in order.

    Args:
        services: Services of the process.
        name: Name of the dataset.
        after: Number of the last document of the previous page; None begins at the first.
        limit: Largest number of documents; a page has fewer when they are long.

    Returns:
        One page.

    Raises:
        DatasetNotFound: No such dataset exists or is being made.
        DatasetNotReady: Its preparation is not finished, or failed.
    """
    dataset = await _ready(services, name)
    return await run_in_threadpool(partial(_examples, dataset, after=after, limit=limit))


async def delete_dataset(services: Services, name: str) -> None:
    """Delete a dataset with the files that were uploaded for it.

    Args:
        services: Services of the process.
        name: Name of the dataset.

    Raises:
        DatasetNotFound: No such dataset exists or is being made.
        DatasetBusy: A job that is not terminal makes or reads it, or a preparation by hand has its lock.
    """
    user = await services.async_store.run(commands.active_user(name))
    await get_dataset(services, name)
    if user is not None:
        raise DatasetBusy(name, user)
    await run_in_threadpool(_remove, services.layout, name)


def read_manifest(dataset: Dataset) -> dict[str, Any] | None:
    """Read the manifest of a dataset.

    Args:
        dataset: A dataset on disk.

    Returns:
        The manifest; None for files that were put there by hand, and when it cannot be read.
    """
    try:
        return dataset.manifest()
    except InvalidData as error:
        log.warning("manifest unreadable dataset=%s reason=%s", dataset.name, error)
        return None


def _remove(layout: Layout, name: str) -> None:
    with lock_dataset(layout, name):
        move_dataset_to_trash(layout, name, _TRASH_OWNER)
    empty_trash(layout, _TRASH_OWNER)


async def _names(services: Services, after: str | None, limit: int) -> tuple[list[str], bool]:
    """The next names in order, and whether Redis answered."""
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
    """The last job that makes or made a dataset; one that is ready does not need Redis."""
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
    """State of a dataset; None if it does not exist."""
    if is_ready:
        return "ready"
    if maker is None or maker.status == "succeeded":  # removed since
        return None
    return maker.status if maker.status in ("failed", "cancelled") else "preparing"


async def _view(services: Services, name: str, maker: Job | None) -> DatasetView | None:
    dataset = await _on_disk(services, name)
    manifest = await run_in_threadpool(read_manifest, dataset) if dataset is not None else None
    state = _state(maker, is_ready=dataset is not None)
    if state is None:
        return None
    recorded, sums = manifest or {}, _sums((manifest or {}).get("splits", {}))
    here = link(f"/datasets/{name}")
    return DatasetView(
        name=name,
        state=state,
        job=maker.id if maker is not None else None,
        progress=maker.progress if maker is not None and state == "preparing" else None,
        error=maker.error if maker is not None and state == "failed" else None,
        source=recorded.get("source"),
        revision=recorded.get("revision"),
        created_at=recorded.get("created_at"),
        documents=sums["documents"],
        tokens=sums["tokens"],
        links=DatasetLinks(
            self_=here,
            statistics=f"{here}/statistics",
            examples=f"{here}/examples",
            job=link(f"/jobs/{maker.id}") if maker is not None else None,
        ),
    )


def _statistics(dataset: Dataset) -> DatasetStatistics:
    manifest = read_manifest(dataset) or {}
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
        **dict(_split(_sums(splits))),
    )


def _split(facts: Mapping[str, Any]) -> SplitStatistics:
    kept = {key: facts.get(key) for key in _SUMS}
    documents, tokens = kept["documents"], kept["tokens"]
    return SplitStatistics(**kept, tokens_per_document=round(tokens / documents, 2) if documents and tokens else None)


def _sums(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """Sums over the splits; None where a split has no count."""
    return {key: _sum([facts.get(key) for facts in splits.values()]) for key in _SUMS}


def _sum(column: Sequence[int | None]) -> int | None:
    known = [value for value in column if value is not None]
    return sum(known) if known and len(known) == len(column) else None


def _counted(dataset: Dataset, split: str) -> dict[str, int | None]:
    """Counts of token files without a manifest."""
    paths = token_files(dataset.split(split))
    size_bytes = sum(path.stat().st_size for path in paths)
    try:
        tokens = sum(int(np.load(path, mmap_mode="r").size) for path in paths)
    except (ValueError, EOFError, OSError):  # training reports it
        return {"tokens": None, "size_bytes": size_bytes}
    return {"tokens": tokens, "size_bytes": size_bytes}


def _example(dataset: Dataset, number: int) -> ExampleView:
    found = dataset.example(number)
    pieces = _pieces(dataset, found.tokens)
    return ExampleView(dataset=dataset.name, id=found.id, text=found.text, tokens=list(found.tokens), pieces=pieces)


def _pieces(dataset: Dataset, tokens: Sequence[int]) -> list[str] | None:
    manifest = dataset.directory / MANIFEST
    try:
        written_ns = manifest.stat().st_mtime_ns if manifest.exists() else 0
        return _tokenizer(dataset, written_ns).names(tokens)
    except (OSError, InvalidData, ValueError) as error:  # ValueError: an id that it does not have
        log.info("examples without pieces dataset=%s reason=%s", dataset.name, error)
        return None


@lru_cache(_MAX_TOKENIZERS)
def _tokenizer(dataset: Dataset, _written_ns: int) -> Tokenizer:  # a dataset may be deleted and made anew
    return dataset.tokenizer()


def _examples(dataset: Dataset, *, after: int | None, limit: int) -> Listed[ExampleView]:
    first, count = 0 if after is None else after + 1, dataset.example_count
    shown, characters = list[ExampleView](), 0
    for number in range(first, min(first + limit, count)):
        shown.append(_example(dataset, number))
        characters += len(shown[-1].text)
        if characters > _MAX_PAGE_CHARACTERS:
            break
    has_more = bool(shown) and shown[-1].id + 1 < count
    return Listed[ExampleView].of(shown, [item.id for item in shown], has_more=has_more)
