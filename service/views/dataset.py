"""Datasets: what is there, what is being made, and what is in them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.views.base import View
from worker.jobs.job import JobError, Progress

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
