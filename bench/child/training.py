"""Runs one measurement and prints its figures as JSON. Other benchmarks start it, so that each has its own process.

python bench/child/training.py ours|transformers|pairs|matmul|plain|chunked '{"settings": [...], "seconds": 5}'
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from harness.training_steps import BASELINE, median_seconds, resident_mib, state_of  # noqa: E402 - needs sys.path
from harness.without_matmuls import skip_matmuls  # noqa: E402 - needs sys.path

from model_core.config_loader import load_config  # noqa: E402

IMPORTED_MIB = resident_mib("VmRSS")  # subtracted from the peak
MATMUL_SIZE, MATMULS = 4096, 10
ROWS, WIDTH, VOCABULARY = 3072, 384, 50304
_UNEQUAL = "[12,12,12,12,8,8,8,8,6,6,6,6]"
_EQUAL = "[12,12,12,12,12,12,12,12,12,12,12,12]"


@dataclass(frozen=True)
class Options:
    """Options of a measurement.

    Attributes:
        settings: Configuration keys that differ from the baseline.
        seconds: Duration.
        directory: Directory for token files.
        matmuls: False skips matmuls and attention.
    """

    settings: list[str]
    seconds: float
    directory: Path
    matmuls: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Number format of matmuls."""
        name = next(s.partition("=")[2] for s in self.settings if s.startswith("device.dtype="))
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]

    def autocast(self) -> torch.autocast:
        """Context in which matmuls use `dtype`."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def ours(options: Options) -> dict[str, float]:
    """Measure Headcount's training loop."""
    from model_core.budget import compute_budget
    from model_core.training.trainer import take_step

    state = state_of(options.settings, options.directory)
    tokens = state.config.training.total_batch_size
    took = median_seconds(lambda: take_step(state), options.seconds)
    flops = float(compute_budget(state.config).flops_per_token)
    return {**_speed(tokens, took), "flops_per_token": flops, "memory_mib": _peak_mib()}


def transformers(options: Options) -> dict[str, float]:
    """Measure GPT2LMHeadModel of the same shape, with the fused AdamW of transformers' Trainer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = load_config(BASELINE, [*options.settings, "training.warmup_steps=0"])
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.model.vocab_size, n_positions=shape.model.block_size, n_embd=shape.model.n_embd,
            n_layer=shape.model.n_layer, n_head=shape.model.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            use_cache=False,
        )
    )  # fmt: skip
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    rows, length = shape.training.batch_size, shape.training.sequence_length

    def step() -> None:
        idx = torch.randint(50257, (rows, length))  # (B, T)
        with options.autocast():
            loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return {**_speed(rows * length, median_seconds(step, options.seconds)), "memory_mib": _peak_mib()}


def pairs(options: Options) -> dict[str, float]:
    """Compare step times of unequal and equal heads, alternating in one process; the median ratio."""
    from model_core.training.trainer import take_step

    states = [
        state_of([*options.settings, f"model.n_head_list={heads}"], options.directory) for heads in (_UNEQUAL, _EQUAL)
    ]
    ratios = []
    for _ in range(8):
        took = [0.0, 0.0]
        for which in (0, 1, 1, 0):  # cancels a drift
            began = time.perf_counter()
            take_step(states[which])
            took[which] += time.perf_counter() - began
        ratios.append(took[0] / took[1])
    measured = ratios[1:]  # the first pair warms up
    return {"ratio": statistics.median(measured), "least": min(measured), "most": max(measured)}


def matmul(options: Options) -> dict[str, float]:
    """Measure the matmul rate of this machine, FLOP/s: the best of ten."""
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(options.dtype)
    took = []
    for _ in range(MATMULS):
        began = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - began)
    return {"flops": 2 * MATMUL_SIZE**3 / min(took)}


def plain(options: Options) -> dict[str, float]:
    """Measure PyTorch's linear map and cross entropy, one after the other."""
    import torch.nn.functional as F  # noqa: N812 - the usual name

    return _head(lambda x, w, y: F.cross_entropy(F.linear(x, w).float(), y), options)


def chunked(options: Options) -> dict[str, float]:
    """Measure Headcount's linear map and cross entropy in chunks."""
    from model_core.cross_entropy import linear_cross_entropy

    return _head(linear_cross_entropy, options)


def _head(loss_of: Callable[..., torch.Tensor], options: Options) -> dict[str, float]:
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    y = torch.randint(VOCABULARY, (ROWS,))
    before = resident_mib("VmRSS")

    def step() -> None:
        x.grad = w.grad = None
        with options.autocast():
            loss = loss_of(x, w, y)
        loss.backward()

    took = median_seconds(step, options.seconds)
    return {"seconds": took, "memory_mib": resident_mib("VmHWM") - before}


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"tokens_per_s": tokens / seconds, "steps_per_s": 1 / seconds}


def _peak_mib() -> float:
    return resident_mib("VmHWM") - IMPORTED_MIB


def main() -> None:
    """Print the figures of the measurement that the command line names."""
    measurements: dict[str, Callable[..., dict[str, Any]]] = {
        "ours": ours, "transformers": transformers, "pairs": pairs, "matmul": matmul, "plain": plain,
        "chunked": chunked,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        options = Options(**json.loads(sys.argv[2]), directory=Path(directory))
        with contextlib.nullcontext() if options.matmuls else skip_matmuls():
            print(json.dumps(measurements[sys.argv[1]](options)))


if __name__ == "__main__":
    main()
