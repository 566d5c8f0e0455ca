"""What a run's checkpoints are called, and what stands in the .json beside each."""

from __future__ import annotations

import re
from dataclasses import dataclass

BEST, FINAL, LATEST, PREVIOUS = "model_best.pt", "model_final.pt", "model_latest.pt", "model_previous.pt"
PERIODIC = re.compile(r"model_(\d{5,})\.pt")
_FILE = re.compile(r"model_[A-Za-z0-9_]+\.pt")


@dataclass(frozen=True)
class CheckpointInfo:
    """What stands beside a checkpoint, in the .json of the same name.

    Attributes:
        file: Name of the weights file.
        step: Optimizer updates done.
        loss: Training loss of that step, or None before the first.
        val_loss: Last validation loss, or None when there was none.
        full: Whether training can go on from it exactly.
        sha256: Hash of the file, hex.
        size_bytes: Size of the file.
        created_at: RFC 3339 UTC.
        schema_version: Of this sidecar.
    """

    file: str
    step: int
    loss: float | None
    val_loss: float | None
    full: bool
    sha256: str
    size_bytes: int
    created_at: str
    schema_version: int = 1


def periodic_name(step: int) -> str:
    """File name of the periodic checkpoint of a step."""
    return f"model_{step:05d}.pt"


def file_of(wanted: str) -> str:
    """File name of ``best``, ``final``, ``latest``, ``step=N`` or a file name; empty for anything else."""
    names = {"best": BEST, "final": FINAL, "latest": LATEST}
    if wanted.startswith("step=") and wanted[5:].isascii() and wanted[5:].isdigit():
        return periodic_name(int(wanted[5:]))
    return names.get(wanted, wanted) if wanted in names or _FILE.fullmatch(wanted) else ""
