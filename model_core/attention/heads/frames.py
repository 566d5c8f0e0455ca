"""Frames of a run: the attention of every head to one fixed text, at each step where the probe was read.

They animate a training without its checkpoints. A frame is ``heads/step_00200.npz`` in the run's directory: one array a
layer, uint8 of the square root of the attention as in a record, and the labels of the tokens as JSON. The frames of a
run share a budget; above it those between a grid of steps are deleted, and the grid gets twice as wide.

Shapes: H heads of one layer, F tokens of a frame.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.storage.files import atomic_write

log = logging.getLogger(__name__)

Levels = NDArray[np.uint8]

DIRECTORY = "heads"
MAX_BYTES = 64 << 20  # of all frames of a run

_NAME = re.compile(r"step_(\d+)\.npz")
_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Frame:
    """Attention of all heads at one step.

    Attributes:
        step: Optimizer updates done.
        tokens: Label of every token, F.
        layers: Quantized attention of each layer, (H, F, F) with its own H; see `record.quantize`.
    """

    step: int
    tokens: tuple[str, ...]
    layers: tuple[Levels, ...]


def save_frame(run: Path, frame: Frame, *, every: int, max_bytes: int = MAX_BYTES) -> None:
    """Write a frame, and delete others when all together exceed the budget.

    Args:
        run: Directory of the run.
        frame: The frame.
        every: Steps between two frames. Of a full budget the frames at multiples of `every` remain, then those at
            multiples of twice as many, and so on; and the newest one.
        max_bytes: Budget of the run.

    Raises:
        DiskFull: No space is left; other frames are intact.
    """
    arrays: dict[str, Any] = {_layer_key(layer): levels for layer, levels in enumerate(frame.layers)}
    with atomic_write(_path(run, frame.step)) as file:
        np.savez(file, tokens=np.frombuffer(json.dumps(frame.tokens).encode(), dtype=np.uint8), **arrays)
    _thin(run, newest=frame.step, every=every, max_bytes=max_bytes)


def frame_steps(run: Path) -> list[int]:
    """List the steps that have a frame.

    Args:
        run: Directory of the run.

    Returns:
        The steps, ascending.
    """
    directory = run / DIRECTORY
    if not directory.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    return sorted(int(name[1]) for name in names if name)


def frame_time(run: Path, step: int) -> int:
    """Read when a frame was written: a later attempt writes it anew.

    Args:
        run: Directory of the run.
        step: A step from `frame_steps`.

    Returns:
        Nanoseconds since 1970; 0 if it was deleted since.
    """
    with contextlib.suppress(FileNotFoundError):
        return _path(run, step).stat().st_mtime_ns
    return 0


def load_frame(run: Path, step: int) -> Frame | None:
    """Read a frame.

    Args:
        run: Directory of the run.
        step: A step from `frame_steps`.

    Returns:
        The frame; None if it was deleted since, or is damaged.
    """
    try:
        with _path(run, step).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            layers = tuple(stored[_layer_key(layer)] for layer in range(len(stored.files) - 1))
            return Frame(step, tuple(json.loads(stored["tokens"].tobytes())), layers)
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        log.warning("frame skipped run=%s step=%d reason=%s", run.name, step, error)
        return None


def _thin(run: Path, *, newest: int, every: int, max_bytes: int) -> None:
    sizes = {step: _path(run, step).stat().st_size for step in frame_steps(run)}
    while sum(sizes.values()) > max_bytes and len(sizes) > 2:
        for step in [step for step in sizes if step % every and step != newest]:
            _path(run, step).unlink(missing_ok=True)
            del sizes[step]
        every *= 2


def _path(run: Path, step: int) -> Path:
    return run / DIRECTORY / f"step_{step:05d}.npz"


def _layer_key(layer: int) -> str:
    return f"layer{layer:02d}"
