"""Writes the exact attention of a record: the model computes it again, in blocks of queries.

Nothing is mapped into memory, because a full disk would then end the process.

Shapes: B batch of 1, H heads of one layer, T tokens, R queries of a block, K keys that they see.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from model_core.attention.capture import AttentionBlock, attention_blocks
from model_core.attention.exact import EXACT, ExactWeights, exact_bytes
from model_core.attention.quota import AttentionQuota
from model_core.attention.record import AttentionRecord, layer_file
from model_core.attention.texts import text_lock
from model_core.errors import AttentionTooLarge, DiskFull, FieldProblem
from model_core.storage.files import atomic_write

if TYPE_CHECKING:
    from model_core.checkpoint import LoadedModel


def write_exact(
    loaded: LoadedModel, record: AttentionRecord, quota: AttentionQuota | None = None
) -> ExactWeights | None:
    """Write the exact attention of a record, once.

    Args:
        loaded: The model of the record's checkpoint.
        record: The record.
        quota: Makes room on the disk; None leaves that to the disk.

    Returns:
        The exact attention; None if the record was deleted or replaced before.

    Raises:
        AttentionTooLarge: The quota has no room for it.
        DiskFull: There is no space for it; nothing is left of it.
    """
    with text_lock(record.text_directory):
        if found := ExactWeights.find(record):
            return found
        whole = AttentionRecord.open(record.path)  # the given one may be its beginning
        if whole is None or whole.manifest["sha256"] != loaded.info.sha256:
            return None
        _make_room(whole, quota)
        part = whole.path / ".exact"
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        try:
            device = next(loaded.model.parameters()).device
            idx = torch.tensor([whole.manifest["token_ids"]], device=device)  # (1, T)
            _write_layers(part, whole, attention_blocks(loaded.model, idx))
            part.rename(whole.path / EXACT)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return ExactWeights.find(whole)


def _make_room(record: AttentionRecord, quota: AttentionQuota | None) -> None:
    needed = exact_bytes(record.heads, len(record.tokens))
    room = None if quota is None else quota.reserve(record.manifest["run"], record.manifest["id"], needed)
    if room is not None:
        detail = f"exact weights take {needed:,} bytes, and there is room for {room:,}; the levels, u8, are there"
        raise AttentionTooLarge(detail, [FieldProblem("/format", detail, "npz", ("u8",))])
    free = shutil.disk_usage(record.path).free
    if needed > free:
        raise DiskFull(record.path / EXACT, needed_bytes=needed, free_bytes=free)


def _write_layers(directory: Path, record: AttentionRecord, blocks: Iterable[AttentionBlock]) -> None:
    tokens = len(record.tokens)
    with ExitStack() as stack:
        file: BinaryIO | None = None
        for block in blocks:
            heads = record.heads[block.layer]
            if file is None:
                path = directory / layer_file(block.layer, record.n_layer, "npy")
                file = stack.enter_context(atomic_write(path))
                shape = {"descr": "<f4", "fortran_order": False, "shape": (heads, tokens, tokens)}
                np.lib.format.write_array_header_1_0(file, shape)
                begin = file.tell()
            _write_rows(file, begin, block, tokens)
            if block.is_last:
                stack.close()
                file = None


def _write_rows(file: BinaryIO, begin: int, block: AttentionBlock, tokens: int) -> None:
    attention = block.attention[0].numpy()  # (H, R, K)
    rows = np.zeros((attention.shape[1], tokens), dtype="<f4")  # (R, T); what comes after the query stays 0
    for head, values in enumerate(attention):
        rows[:, : values.shape[1]] = values
        file.seek(begin + rows.itemsize * tokens * (head * tokens + block.first))
        file.write(rows.tobytes())
