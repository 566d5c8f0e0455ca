"""What is in a dataset that is ready, as its manifest and its files tell."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model_core.errors import InvalidData
from model_core.records.dataset import SPLITS, Dataset, token_files
from service.views.base import Listed
from service.views.dataset import CategoryStatistics, DatasetStatistics, ExampleView, SplitStatistics

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
