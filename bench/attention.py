"""Speed and memory of what is measured of attention, beside a plain forward pass without the language model's head.

    make bench NAME=attention [or: python bench/attention.py --only capture --quick]

Sides take turns in one process, and ratios are medians over the rounds with their range. `capture` and `distribution`
run models of GPT-2's width, one of them with unequal heads; `probe` and `ablation` train the quickstart model; `disk`
and `history` ask a service over HTTP, with gzip. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from harness.attention_service import disk, history
from harness.head_trainings import ablation_quote, probe
from harness.table import Row, header, print_rows
from harness.turns import ratio_row, take_turns, time_row

from model_core.attention.capture import attention_blocks
from model_core.attention.heads.ablation import ablate
from model_core.attention.heads.ablation_record import AblationOptions, count_passes
from model_core.attention.heads.distribution import TextSample
from model_core.attention.heads.matching import match_heads
from model_core.attention.heads.patterns import MEASURED, HeadPatterns, row_starts
from model_core.attention.record import quantize
from model_core.attention.statistics import HeadAccumulator
from model_core.config import ModelConfig
from model_core.gpt import GPT
from model_core.hardware.process_environment import usable_cores
from model_core.training.evaluate import accumulate_distribution

MEMORY_PROGRAM = Path(__file__).parent / "child" / "capture_memory.py"
VOCABULARY, ROUNDS = 1280, 5
HEADS = {"12 heads a layer": (12,) * 12, "24 to 1 heads": (24, 16, 12, 12, 8, 8, 6, 6, 4, 3, 2, 1)}
QUICKSTART = ModelConfig(n_layer=4, n_embd=128, n_head_list=(8, 4, 2, 1), vocab_size=VOCABULARY, block_size=256)
CAPTURE = 1.15  # times a plain forward pass
STATISTICS = {128: 0.15, 512: 0.2, 1024: 0.35}  # plain forward passes on top of the capture
MEMORY_MIB, MEMORY_SHAPES = 200.0, ((64, 4096), (4, 16_384), (1, 32_768))  # heads and tokens: 2^30 weights each
DISTRIBUTION, ABLATION, MATCHING_MS = 2.5, 1.2, 200.0
EXAMPLES, EXAMPLE_TOKENS = 256, 128
MATCHED, WINDOWS, WINDOW_TOKENS = 144, 8, 128
ABLATED_TOKENS, ABLATED_WINDOWS = 16_384, 16  # of the sample, and of a forward pass over it


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Measurements of each side.
        quick: Small models and short texts, for a trial of the program; the targets are not meant for them.
    """

    rounds: int
    quick: bool

    def model(self, heads: tuple[int, ...], tokens: int) -> GPT:
        """Build a random model of GPT-2's width."""
        width, heads = (24, heads[-2:]) if self.quick else (768, heads)
        shape = ModelConfig(
            n_layer=len(heads), n_embd=width, n_head_list=heads, vocab_size=VOCABULARY, block_size=tokens
        )
        torch.manual_seed(0)
        return GPT(shape).eval()


@torch.no_grad()
def plain_forward(model: GPT, idx: torch.Tensor) -> None:
    """Run all layers with the fused kernel, without the language model's head."""
    x = model.embed(idx)  # (B, T, C)
    for block in model.blocks:
        x = block(x)


def capture_only(model: GPT, idx: torch.Tensor) -> None:
    """Compute all attention."""
    for _ in attention_blocks(model, idx):
        pass


def capture_and_measure(model: GPT, idx: torch.Tensor) -> None:
    """Compute all attention and norms, and the statistics of every head."""
    heads: HeadAccumulator | None = None
    for block in attention_blocks(model, idx, norms=True):
        assert block.value_norms is not None
        assert block.output_norms is not None
        if heads is None:
            heads = HeadAccumulator(idx.size(1), block.attention.size(1))
        heads.add(
            block.first,
            block.attention[0].numpy(),
            value_norms=block.value_norms[0].numpy(),
            output_norms=block.output_norms[0].numpy(),
        )
        if block.is_last:
            heads.finish()
            heads = None


def capture(plan: Plan) -> Iterator[Row]:
    """Compare a capture, and its statistics, with a plain forward pass."""
    lengths = (16, 32) if plan.quick else tuple(STATISTICS)
    for name, heads in HEADS.items():
        model = plan.model(heads, max(lengths))
        for tokens in lengths:
            idx = random_ids((1, tokens))  # (1, T)
            sides = {"plain": plain_forward, "capture": capture_only, "statistics": capture_and_measure}
            turns = take_turns({side: partial(run, model, idx) for side, run in sides.items()}, 2 * plan.rounds)
            plain, captured, measured = ([turn[side] for turn in turns] for side in sides)
            yield ratio_row(f"{name}, {tokens}: capture", captured, plain, CAPTURE)
            what = f"{name}, {tokens}: statistics"
            yield ratio_row(what, measured, plain, STATISTICS.get(tokens), base=captured)


def memory(plan: Plan) -> Iterator[Row]:
    """Measure the memory of captures of many weights, each in a process of its own."""
    for heads, tokens in ((2, 512),) if plan.quick else MEMORY_SHAPES:
        command = [sys.executable, str(MEMORY_PROGRAM), json.dumps({"heads": heads, "tokens": tokens})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        mib = json.loads(done.stdout.splitlines()[-1])["memory_mib"]
        weights = f"{4 * heads * tokens**2 / 2**20:,.0f} MiB"
        yield Row(f"capture of {heads} x {tokens:,}^2 weights", f"{mib:,.0f} MiB", weights, mib, MEMORY_MIB, unit="MB")


def distribution(plan: Plan) -> Iterator[Row]:
    """Compare the distribution over many texts with plain forward passes over the same batches."""
    examples, tokens = (8, 16) if plan.quick else (EXAMPLES, EXAMPLE_TOKENS)
    texts = random_ids((examples, tokens)).tolist()
    sample = TextSample.of(range(examples), texts, tokens)
    wide = [replace_examples(sample, max(1, examples // 8)), plan.model(HEADS["12 heads a layer"], tokens)]
    for name, (texts_read, model) in {"quickstart": (sample, quickstart()), "GPT-2's width": wide}.items():
        batches = [torch.tensor([texts_read.texts[text] for text in batch]) for batch in texts_read.batches()]

        def plain(model: GPT = model, batches: Sequence[torch.Tensor] = batches) -> None:
            for idx in batches:
                plain_forward(model, idx)

        measured = partial(accumulate_distribution, model, texts_read, lambda: False)
        turns = take_turns({"plain": plain, "measured": measured}, plan.rounds)
        took, base = ([turn[side] for turn in turns] for side in ("measured", "plain"))
        yield ratio_row(f"distribution of {len(texts_read.texts)}, {name}", took, base, DISTRIBUTION)


def replace_examples(sample: TextSample, count: int) -> TextSample:
    """Keep the first examples of a sample."""
    return replace(sample, examples=sample.examples[:count], texts=sample.texts[:count])


def ablation(plan: Plan) -> Iterator[Row]:
    """Compare an ablation with as many clean passes over its sample, and its quote with a job."""
    model, wanted = quickstart(), AblationOptions(tokens=512 if plan.quick else ABLATED_TOKENS)
    windows = max(1, wanted.tokens // QUICKSTART.block_size)
    ids = random_ids((windows, QUICKSTART.block_size + 1))  # (N, T + 1)

    @torch.no_grad()
    def clean() -> None:
        for rows in ids.split(ABLATED_WINDOWS):
            model(rows[:, :-1], rows[:, 1:])

    def ablated() -> None:
        for _ in ablate(model, ids.numpy(), wanted):
            pass

    passes = count_passes(QUICKSTART.heads, wanted)
    turns = take_turns({"clean": clean, "ablated": ablated}, max(1, plan.rounds // 2))
    took, one = ([turn[side] for turn in turns] for side in ("ablated", "clean"))
    yield ratio_row(f"ablation, of {passes:.0f} passes", took, [passes * seconds for seconds in one], ABLATION)
    yield from ablation_quote(quick=plan.quick)


def matching(plan: Plan) -> Iterator[Row]:
    """Pair the heads of two models of 144 heads."""
    heads = 6 if plan.quick else MATCHED
    sides = [random_patterns(heads, seed) for seed in (1, 2)]

    def fresh() -> list[HeadPatterns]:
        return [replace(side) for side in sides]  # without what an earlier matching computed

    turns = take_turns({"matched": lambda: match_heads(*fresh())}, 2 * plan.rounds)
    what = f"matching of {heads} x {heads} heads, T = {WINDOW_TOKENS}"
    yield time_row(what, [turn["matched"] for turn in turns], MATCHING_MS)


def quickstart() -> GPT:
    """Build a random model of the quickstart's shape."""
    torch.manual_seed(0)
    return GPT(QUICKSTART).eval()


def random_ids(shape: tuple[int, ...]) -> torch.Tensor:
    """Draw token ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))


def random_patterns(heads: int, seed: int) -> HeadPatterns:
    """Draw attention of all heads of a model to a few windows."""
    rng = np.random.default_rng(seed)
    starts = row_starts(WINDOW_TOKENS)
    logits = np.exp(rng.normal(scale=2, size=(heads, WINDOWS, starts[-1])))  # (N, W, P)
    sums = np.add.reduceat(logits, starts[:-1], axis=-1)  # (N, W, T-1)
    attention = logits / np.repeat(sums, np.diff(starts), axis=-1)  # (N, W, P)
    values = {name: rng.uniform(0, 0.9, heads) for name in MEASURED}
    return HeadPatterns((heads,), WINDOW_TOKENS, quantize(attention), values)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; 1 when a target is missed."""
    parts: dict[str, Callable[[Plan], Iterator[Row]]] = {
        "capture": capture, "memory": memory, "probe": lambda plan: probe(plan.rounds, quick=plan.quick),
        "distribution": distribution, "ablation": ablation, "matching": matching,
        "disk": lambda plan: disk(plan.rounds, quick=plan.quick),
        "history": lambda plan: history(plan.rounds, quick=plan.quick),
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch in this process; default 1, the steadiest")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each side")
    parser.add_argument("--quick", action="store_true", help="a trial: one round with small models")
    parser.add_argument("--only", choices=list(parts), action="append")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    plan = Plan(1 if arguments.quick else arguments.rounds, arguments.quick)
    spin = os.environ.get("GOMP_SPINCOUNT", "not set")
    print(f"{arguments.threads} threads of {usable_cores()} cores; GOMP_SPINCOUNT {spin}")
    print(header("measured", "plain, range", "value"))
    return print_rows(chain.from_iterable(parts[name](plan) for name in arguments.only or parts))


if __name__ == "__main__":
    raise SystemExit(main())
