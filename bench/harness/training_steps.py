"""Builds a training on random tokens, and measures the time and the memory of its steps."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from model_core.config_loader import load_config
from model_core.data.ensure import ensure_dataset
from model_core.hardware.device import apply, decide, describe_machine
from model_core.storage.files import Layout
from model_core.training.setup import build_train_state
from model_core.training.trainer import TrainState

BASELINE = Path(__file__).parents[2] / "configs" / "baseline.yaml"
Emit = Callable[..., object]
_TOKENS, _GPT2_IDS = 2_000_000, 50257


def state_of(settings: Sequence[str], directory: Path, emit: Emit = lambda *_, **__: None) -> TrainState:
    """Build the training state of the baseline configuration, on random tokens.

    Args:
        settings: Keys that differ from the baseline, for example ``model.n_layer=6``.
        directory: Directory for the token files.
        emit: Receives events such as a failed compilation.

    Returns:
        The state before the first step.
    """
    ids = np.random.default_rng(0).integers(0, _GPT2_IDS, _TOKENS).astype(np.uint16)
    for split, count in {"train": _TOKENS, "val": 2000, "test": 2000}.items():
        np.save(directory / f"random_{split}.npy", ids[:count])
    files = [f"data.{split}_file=random_{split}.npy" for split in ("train", "val", "test")]
    config = load_config(BASELINE, [f"data.data_dir={directory}", *files, "training.warmup_steps=0", *settings])
    runtime = decide(config, describe_machine())
    apply(runtime)
    return build_train_state(config, runtime, ensure_dataset(config, Layout.of(config)), emit)


def median_seconds(step: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Time a step repeatedly, after one that warms up.

    Args:
        step: Runs one step.
        seconds: Total time of the steps.
        least: Minimum number of steps.

    Returns:
        Median seconds per step.
    """
    step()
    took: list[float] = []
    while len(took) < least or sum(took) < seconds:
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def resident_mib(name: str) -> float:
    """Read the memory of this process.

    Args:
        name: ``VmRSS`` for the current size, ``VmHWM`` for the peak so far.

    Returns:
        Mebibytes; nan where the system does not report it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else float("nan")
