"""One measurement in a process of its own; prints it as JSON. `bench/train.py` and `bench/cross_entropy.py` start it.

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

from parts.hollow import without_products  # noqa: E402 - found only now
from parts.steps import BASELINE, median_seconds, resident_mib, state_of  # noqa: E402 - found only now

from model_core.config_loader import load_config  # noqa: E402

IMPORTED_MIB = resident_mib("VmRSS")  # what follows is counted from here


@dataclass(frozen=True)
class Asked:
    """How to measure: keys that differ from the baseline's, for how long, and a directory for tokens.

    `hollow` leaves the matrix products out.
    """

    settings: list[str]
    seconds: float
    directory: Path
    hollow: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the products."""
        name = next(s.partition("=")[2] for s in self.settings if s.startswith("device.dtype="))
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]

    def autocast(self) -> torch.autocast:
        """Context in which products use it."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


SIDE, PRODUCTS = 4096, 10
ROWS, WIDTH, VOCABULARY = 3072, 384, 50304


def ours(asked: Asked) -> dict[str, float]:
    """Our loop, as a run takes its steps."""
    from model_core.budget import budget_of
    from model_core.training.trainer import take_step

    state = state_of(asked.settings, asked.directory)
    tokens = state.config.training.total_batch_size
    took = median_seconds(lambda: take_step(state), asked.seconds)
    flops = float(budget_of(state.config).flops_per_token)
    return {**_speed(tokens, took), "flops_per_token": flops, "memory_mib": _peak_mib()}


def transformers(asked: Asked) -> dict[str, float]:
    """GPT2LMHeadModel of the same shape, with the optimizer that its Trainer takes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = load_config(BASELINE, [*asked.settings, "training.warmup_steps=0"])
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
        with asked.autocast():
            loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return {**_speed(rows * length, median_seconds(step, asked.seconds)), "memory_mib": _peak_mib()}


def pairs(asked: Asked) -> dict[str, float]:
    """Two steps of the layers' own heads beside two of equal ones, in turns; the median ratio of their times."""
    from model_core.training.trainer import take_step

    states = [
        state_of([*asked.settings, f"model.n_head_list={heads}"], asked.directory) for heads in (_UNEQUAL, _EQUAL)
    ]
    ratios = []
    for _ in range(8):
        took = [0.0, 0.0]
        for which in (0, 1, 1, 0):  # what drifts cancels
            began = time.perf_counter()
            take_step(states[which])
            took[which] += time.perf_counter() - began
        ratios.append(took[0] / took[1])
    measured = ratios[1:]  # the first pair warms up
    return {"ratio": statistics.median(measured), "least": min(measured), "most": max(measured)}


_UNEQUAL = "[12,12,12,12,8,8,8,8,6,6,6,6]"
_EQUAL = "[12,12,12,12,12,12,12,12,12,12,12,12]"


def matmul(asked: Asked) -> dict[str, float]:
    """What this machine can multiply, FLOP/s: best of ten."""
    a, b = torch.randn(2, SIDE, SIDE).to(asked.dtype)
    took = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - began)
    return {"flops": 2 * SIDE**3 / min(took)}


def plain(asked: Asked) -> dict[str, float]:
    """Head and cross entropy, one after the other."""
    import torch.nn.functional as F  # noqa: N812 - the name everybody uses

    return _head(lambda x, w, y: F.cross_entropy(F.linear(x, w).float(), y), asked)


def chunked(asked: Asked) -> dict[str, float]:
    """Head and cross entropy in chunks."""
    from model_core.cross_entropy import linear_cross_entropy

    return _head(linear_cross_entropy, asked)


def _head(loss_of: Callable[..., torch.Tensor], asked: Asked) -> dict[str, float]:
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    y = torch.randint(VOCABULARY, (ROWS,))
    before = resident_mib("VmRSS")

    def step() -> None:
        x.grad = w.grad = None
        with asked.autocast():
            loss = loss_of(x, w, y)
        loss.backward()

    took = median_seconds(step, asked.seconds)
    return {"seconds": took, "memory_mib": resident_mib("VmHWM") - before}


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"tokens_per_s": tokens / seconds, "steps_per_s": 1 / seconds}


def _peak_mib() -> float:
    return resident_mib("VmHWM") - IMPORTED_MIB


def main() -> None:
    """Measure, and print it."""
    roles: dict[str, Callable[..., dict[str, Any]]] = {
        "ours": ours, "transformers": transformers, "pairs": pairs, "matmul": matmul, "plain": plain,
        "chunked": chunked,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        asked = Asked(**json.loads(sys.argv[2]), directory=Path(directory))
        with without_products() if asked.hollow else contextlib.nullcontext():
            print(json.dumps(roles[sys.argv[1]](asked)))


if __name__ == "__main__":
    main()
