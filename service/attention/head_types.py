"""Labels of a checkpoint's heads, as the probe of its training told them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from model_core.attention.heads.history import HistoryReader, Labels
from model_core.storage.files import Layout
from model_core.storage.run import Run

_MAX_READERS = 16


def known_types(layout: Layout, name: str, sha256: str) -> Labels | None:
    """Find the labels of a checkpoint.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        sha256: Hash of the checkpoint's file, hex.

    Returns:
        Labels of the heads that have one; None if the probe was not read at the checkpoint's step, or if the
        checkpoint was replaced.

    Raises:
        RunNotFound: There is no such run.
    """
    run = Run.open(layout.run(name))
    step = next((info.step for info in run.checkpoints() if info.sha256 == sha256), None)
    if step is None or not run.events.is_file():
        return None
    readings = _reader(run.events, run.events.stat().st_ino).read().readings
    return next((reading.types for reading in readings if reading.step == step), None)


@lru_cache(maxsize=_MAX_READERS)
def _reader(events: Path, _inode: int) -> HistoryReader:
    """Reading again costs only the new events; a path may later be another file."""
    return HistoryReader(events)
