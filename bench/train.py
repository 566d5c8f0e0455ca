"""Speed, memory and MFU of training on the CPU beside transformers, and the cost of unequal heads.

    make bench NAME=train [or: python bench/train.py --only small --dtype float32]

Headcount and transformers alternate, each round in its own process; the ratio is the median over the rounds. Headcount
starts with the allocator settings that the supervisor and the command line set; transformers runs a plain loop with the
fused AdamW of its Trainer. Peak memory is VmHWM minus VmRSS after the import of torch. MFU is relative to the fastest
of ten 4096 x 4096 matmuls of the same run. Exits 1 when a target is missed. Where the processor has no bfloat16
instructions both train in float32, and the table says so. `--seconds 0 --set model.n_embd=24 --set model.block_size=8
...` is a quick trial.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from harness.comparison import PLAIN_ENVIRONMENT, ROUNDS, SECONDS, SHAPES, TUNED_ENVIRONMENT, alternate
from harness.subprocesses import measure
from harness.table import Row, header, print_rows

TARGETS = {"small": 1.9, "124M": 1.8}
MEMORY_TARGETS = {"small": 0.55, "124M": 1.0}
MFU_TARGET, HEADS_TARGET = 0.45, 1.05
CPUINFO = Path("/proc/cpuinfo")


def compare(shape: str, given: Sequence[str], flops: float, seconds: float) -> Iterator[Row]:
    """Compare one shape with transformers; `given` keys win over those of the shape."""
    rounds = alternate([*SHAPES[shape], *given], seconds)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in rounds]
    mine, others = (statistics.median(side["tokens_per_s"] for side in sides) for sides in zip(*rounds, strict=True))
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    yield Row(
        f"{shape}: tokens/s ({spread})", f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), TARGETS[shape],
        higher_is_better=True,
    )  # fmt: skip
    mine, others = (max(side["memory_mib"] for side in sides) for sides in zip(*rounds, strict=True))
    yield Row(f"{shape}: peak memory, MiB", f"{mine:,.0f}", f"{others:,.0f}", mine / others, MEMORY_TARGETS[shape])
    speed = statistics.median(ours["tokens_per_s"] for ours, _ in rounds)
    mfu = speed * rounds[0][0]["flops_per_token"] / flops
    what = f"{shape}: MFU of {flops / 1e9:,.0f} GFLOP/s"
    yield Row(what, f"{mfu:.2f}", "", mfu, MFU_TARGET if shape == "124M" else None, higher_is_better=True)


def unequal_heads(given: Sequence[str], seconds: float) -> Iterator[Row]:
    """Compare steps of variable_heads with steps of the uniform model, in one process."""
    figures = measure("pairs", [*SHAPES["124M"], *given], seconds, TUNED_ENVIRONMENT)
    spread = f"{figures['least']:.3f}-{figures['most']:.3f}"
    yield Row("variable_heads: time per step / uniform's", spread, "", figures["ratio"], HEADS_TARGET)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=[*SHAPES, "heads"], action="append")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of one measurement")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    chosen = arguments.only or [*SHAPES, "heads"]
    dtype = arguments.dtype or _dtype_of_this_cpu()
    given, seconds = [f"device.dtype={dtype}", "device.device=cpu", *arguments.settings], arguments.seconds
    flops = measure("matmul", given, seconds, PLAIN_ENVIRONMENT)["flops"]
    why = "" if arguments.dtype or dtype == "bfloat16" else ": this processor has no bfloat16 instructions"
    print(f"{ROUNDS} rounds in {dtype}{why}; 4096 x 4096 matmuls at {flops / 1e9:,.0f} GFLOP/s")
    print(header("Headcount", "transformers"))
    tables = (
        unequal_heads(given, seconds) if name == "heads" else compare(name, given, flops, seconds) for name in chosen
    )
    return print_rows(chain.from_iterable(tables))


def _dtype_of_this_cpu() -> str:
    from model_core.hardware.device import has_bfloat16

    return "bfloat16" if has_bfloat16(CPUINFO) else "float32"


if __name__ == "__main__":
    raise SystemExit(main())
