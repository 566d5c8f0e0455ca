"""What is in a dataset that is ready: numbers out of its manifest or its files, and documents of its test split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model_core.records.dataset import SPLITS, Dataset, token_files
from model_core.records.examples import Example
from service.views.dataset import CategoryStatistics, DatasetStatistics, SplitStatistics

log = logging.getLogger(__name__)

_MOST_CHARACTERS = 1 << 22  # of a page of examples: each may be as long as its source lets it
_SUMS = ("documents", "tokens", "text_bytes", "size_bytes")


def statistics_of(dataset: Dataset) -> DatasetStatistics:
    """What is in a dataset, as its manifest counts it; of files put there by hand, as far as these tell."""
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("manifest unreadable dataset=%s reason=%r", dataset.name, error)
        return None


def sums_of(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, int | None]:
    """Sums over the splits; None where one of them does not say."""
    return {key: _sum([facts.get(key) for facts in splits.values()]) for key in _SUMS}


def documents_of(dataset: Dataset, first: int, count: int) -> list[Example]:
    """Documents of the test split from a number on; fewer where they are long."""
    found, characters = list[Example](), 0
    for number in range(first, min(first + count, dataset.example_count)):
        found.append(dataset.example(number))
        characters += len(found[-1].text)
        if characters > _MOST_CHARACTERS:
            break
    return found


def _split(facts: Mapping[str, Any]) -> SplitStatistics:
    kept = {key: facts.get(key) for key in _SUMS}
    documents, tokens = kept["documents"], kept["tokens"]
    return SplitStatistics(**kept, tokens_per_document=round(tokens / documents, 2) if documents and tokens else None)


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
