"""Ours and transformers, in turns, each in a process of its own: a machine is never quiet, and so hits both alike."""

from __future__ import annotations

import os
from collections.abc import Sequence

from parts.processes import measured

from model_core.hardware.allocator import SETTINGS

ROUNDS, SECONDS = 3, 8.0
SHAPES = {
    "small": ["model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.block_size=256",
              "training.batch_size=12", "training.sequence_length=256", "training.total_batch_size=3072"],
    "124M": ["training.batch_size=4", "training.sequence_length=256", "training.total_batch_size=1024"],
}  # fmt: skip
AS_IT_IS = {name: value for name, value in os.environ.items() if name not in SETTINGS}
WITH_ALLOCATOR = {**AS_IT_IS, **SETTINGS}  # what the supervisor and the command line give to a training

Side = dict[str, float]


def in_turns(settings: Sequence[str], seconds: float, *, hollow: bool = False) -> list[tuple[Side, Side]]:
    """Measure rounds of both.

    Args:
        settings: Keys that differ from the baseline's.
        seconds: Of a measurement.
        hollow: Leave the matrix products out.

    Returns:
        What each round found of ours and of transformers.
    """
    rounds = []
    for turn in range(ROUNDS):
        both = {}
        for who in ("ours", "transformers") if turn % 2 else ("transformers", "ours"):
            environment = WITH_ALLOCATOR if who == "ours" else AS_IT_IS
            both[who] = measured(who, list(settings), seconds, environment, hollow=hollow)
        rounds.append((both["ours"], both["transformers"]))
    return rounds
