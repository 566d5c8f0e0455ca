"""Alternates measurements of Headcount and transformers, each in its own process.

Other load on the machine varies over time; alternation makes it affect both sides alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from harness.subprocesses import measure

from model_core.hardware.process_environment import ALLOCATOR, startup_variables

ROUNDS, SECONDS = 3, 8.0
SHAPES = {
    "small": ["model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.block_size=256",
              "training.batch_size=12", "training.sequence_length=256", "training.total_batch_size=3072"],
    "124M": ["training.batch_size=4", "training.sequence_length=256", "training.total_batch_size=1024"],
}  # fmt: skip
PLAIN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
TUNED_ENVIRONMENT = PLAIN_ENVIRONMENT | startup_variables(PLAIN_ENVIRONMENT)  # as supervisor and command line start one

Figures = dict[str, float]


def alternate(settings: Sequence[str], seconds: float, *, matmuls: bool = True) -> list[tuple[Figures, Figures]]:
    """Measure several rounds of both sides.

    Args:
        settings: Configuration keys that differ from the baseline.
        seconds: Duration of one measurement.
        matmuls: False skips matmuls and attention.

    Returns:
        Figures of Headcount and of transformers in each round.
    """
    rounds = []
    for turn in range(ROUNDS):
        both = {}
        for side in ("ours", "transformers") if turn % 2 else ("transformers", "ours"):
            environment = TUNED_ENVIRONMENT if side == "ours" else PLAIN_ENVIRONMENT
            both[side] = measure(side, list(settings), seconds, environment, matmuls=matmuls)
        rounds.append((both["ours"], both["transformers"]))
    return rounds
