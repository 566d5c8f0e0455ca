"""What a run will need is compared with what the machine has, before the first step."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from model_core.budget import DiskBudget, budget_of
from model_core.config import ExperimentConfig
from model_core.loading import Advice
from model_core.records.dataset import Dataset
from model_core.report import train_tokens_of

log = logging.getLogger(__name__)

_GIB = 1 << 30


def preflight(config: ExperimentConfig, dataset: Dataset, run: Path, emit: Callable[..., Any]) -> None:
    """Say how long the run will be, in steps, tokens and passes over the data, and warn of what may run out.

    Args:
        config: Resolved: max_steps is what will be done.
        dataset: Ready.
        run: Directory of the run.
        emit: Told ``warning``.
    """
    budget = budget_of(config, train_tokens=train_tokens_of(dataset))
    length = budget.schedule
    log.info("planned steps=%d tokens=%d epochs=%.2f", length.steps, length.tokens, length.epochs or 0.0)
    for advice in disk_shortage(budget.disk, run):
        emit("warning", code=advice.code, detail=advice.detail)


def disk_shortage(disk: DiskBudget, run: Path) -> Iterator[Advice]:
    """Warn when a run's checkpoints may not fit; other runs and datasets may fill the disk too, so it is no refusal.

    Args:
        disk: What the checkpoints need.
        run: Directory of the run, there or not yet. Checkpoints that lie there already are not counted again.
    """
    place = run = run.absolute()
    while not place.is_dir():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, disk.total_bytes
    if needed > free:
        needed -= sum(file.stat().st_size for file in run.glob("model_*.pt"))
    if needed > free:
        yield Advice(
            "disk_low",
            f"the checkpoints of this run need up to {needed / _GIB:,.1f} GiB and {free / _GIB:,.1f} GiB are free; "
            "make room, or lower evaluation.max_checkpoints_to_keep",
        )
