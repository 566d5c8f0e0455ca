"""What a dataset has on disk, looked up once for each state of its directory: a crowd of requests asks for the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model_core.records.dataset import MANIFEST, Dataset
from model_core.report import train_tokens_of

_MOST_DATASETS = 256


@dataclass(frozen=True)
class Stock:
    """What there is of a dataset.

    Attributes:
        is_ready: Whether all its token files are there.
        train_tokens: Tokens of its training split; None while it is not there.
        manifest: What preparation recorded of it; None of files that were not prepared here.
    """

    is_ready: bool
    train_tokens: int | None
    manifest: Mapping[str, Any] | None


def stock_of(dataset: Dataset) -> Stock:
    """Look at a dataset."""
    return _looked_at(dataset, *map(_state, (dataset.directory, dataset.train, dataset.directory / MANIFEST)))


@lru_cache(_MOST_DATASETS)
def _looked_at(dataset: Dataset, *_states: tuple[int, int] | None) -> Stock:
    return Stock(not dataset.missing(), train_tokens_of(dataset), dataset.manifest())


def _state(path: Path) -> tuple[int, int] | None:
    """Changes when a file of a directory comes, goes or is replaced, and when a file is written over."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size
