"""Captures what every head of a checkpoint attends to in the windows of a dataset's probe, once for each of both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model_core.attention.capture import attention_blocks
from model_core.attention.heads.patterns import (
    MAX_HEADS,
    HeadPatterns,
    patterns_bytes,
    patterns_file,
    thin_patterns,
    windows_key,
)
from model_core.attention.heads.probe import Probe
from model_core.attention.quota import AttentionQuota
from model_core.errors import AttentionTooLarge, InvalidParameter

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel
    from model_core.storage.dataset import Dataset
    from model_core.storage.files import Layout

log = logging.getLogger(__name__)


def capture_patterns(
    loaded: LoadedModel, run: str, layout: Layout, dataset: Dataset, *, tokens: int, quota: AttentionQuota | None = None
) -> Path:
    """Capture the patterns of a checkpoint, unless they are there.

    Args:
        loaded: The model of the checkpoint.
        run: Name of the run.
        layout: Paths of the data root.
        dataset: Dataset of the windows.
        tokens: Tokens of a window; a probe has fewer at most.
        quota: Makes room on the disk; None leaves that to the disk.

    Returns:
        The file of `patterns_file`.

    Raises:
        AttentionTooLarge: The model has more heads than `MAX_HEADS`, or the quota has no room for its patterns.
        DatasetNotReady: The dataset has no validation split.
        InvalidData: The validation split is shorter than one window, or damaged.
        InvalidParameter: The windows are longer than the model's positions, or have ids that it does not know.
        DiskFull: No space is left.
    """
    model = loaded.config.model
    path = patterns_file(layout, run, loaded.info.sha256, windows_key(dataset, tokens))
    if HeadPatterns.load(path) is not None:
        return path
    if sum(model.heads) > MAX_HEADS:
        raise AttentionTooLarge(f"{sum(model.heads):,} heads are too many to compare; at most {MAX_HEADS:,} fit")
    probe = Probe.of(dataset, tokens)
    idx = torch.from_numpy(probe.windows)  # (W, T)
    if idx.size(1) > model.block_size or int(idx.max()) >= model.vocab_size:
        detail = f"have {idx.size(1)} tokens and ids up to {int(idx.max())}"
        takes = f"{run!r} takes {model.block_size} tokens and ids below {model.vocab_size}"
        raise InvalidParameter(f"the windows of dataset {dataset.name!r} {detail}; {takes}")
    needed = patterns_bytes(sum(model.heads), idx.size(0), idx.size(1))
    if quota is not None and (room := quota.reserve(run, None, needed)) is not None:
        raise AttentionTooLarge(f"patterns of {sum(model.heads)} heads take {needed:,} bytes; {room:,} are left")
    device = next(loaded.model.parameters()).device
    blocks = attention_blocks(loaded.model, idx.to(device), norms=True)
    patterns = HeadPatterns.of(blocks, heads=model.heads, windows=idx.size(0), tokens=idx.size(1), probe=probe.sha256)
    patterns.save(path)
    thin_patterns(path.parent)
    log.info("patterns captured run=%s checkpoint=%s windows_of=%s", run, loaded.info.file, dataset.name)
    return path
