"""How fast a CPU trains, beside transformers, and what unequal heads cost.

    make bench NAME=train [or: python bench/train.py --only small --dtype float32]

Ours and transformers take turns, each round in a process of its own; the ratio is the median over the rounds, because a
machine is never quiet. Ours begins with the allocator's settings that the supervisor and the command line give; theirs
is a loop as a person writes it, with the fused optimizer of its Trainer. Peak memory is VmHWM less VmRSS after the
import of torch. MFU is held against the best of ten products of 4096 x 4096 in the same run. Exits 1 when a target is
missed. Where the processor has no instructions for bfloat16 both train in float32, and the table says so.
`--seconds 0 --set model.n_embd=24 --set model.block_size=8 ...` shows that it works.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from parts.line import Line
from parts.processes import measured
from parts.turns import AS_IT_IS, ROUNDS, SECONDS, SHAPES, WITH_ALLOCATOR, in_turns

TARGETS = {"small": 1.9, "124M": 1.8}
MEMORY_TARGETS = {"small": 0.55, "124M": 1.0}
MFU_TARGET, HEADS_TARGET = 0.45, 1.05
CPUINFO = Path("/proc/cpuinfo")


def compare(shape: str, given: Sequence[str], flops: float, seconds: float) -> Iterator[Line]:
    """Ours and theirs in turns; `given` keys win over those of the shape."""
    rounds = in_turns([*SHAPES[shape], *given], seconds)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in rounds]
    mine, others = (statistics.median(side["tokens_per_s"] for side in sides) for sides in zip(*rounds, strict=True))
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    yield Line(
        f"{shape}: tokens/s ({spread})", f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), TARGETS[shape],
        higher_is_better=True,
    )  # fmt: skip
    mine, others = (max(side["memory_mib"] for side in sides) for sides in zip(*rounds, strict=True))
    yield Line(f"{shape}: peak memory, MiB", f"{mine:,.0f}", f"{others:,.0f}", mine / others, MEMORY_TARGETS[shape])
    speed = statistics.median(ours["tokens_per_s"] for ours, _ in rounds)
    mfu = speed * rounds[0][0]["flops_per_token"] / flops
    what = f"{shape}: MFU of {flops / 1e9:,.0f} GFLOP/s"
    yield Line(what, f"{mfu:.2f}", "", mfu, MFU_TARGET if shape == "124M" else 0.0, higher_is_better=True)


def unequal_heads(given: Sequence[str], seconds: float) -> Iterator[Line]:
    """Steps of variable_heads beside steps of the uniform model, in one process."""
    found = measured("pairs", [*SHAPES["124M"], *given], seconds, WITH_ALLOCATOR)
    spread = f"{found['least']:.3f}-{found['most']:.3f}"
    yield Line("variable_heads: time of a step by uniform's", spread, "", found["ratio"], HEADS_TARGET)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=[*SHAPES, "heads"], action="append")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a measurement")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    chosen = arguments.only or [*SHAPES, "heads"]
    dtype = arguments.dtype or _dtype_of_this_cpu()
    given, seconds = [f"device.dtype={dtype}", "device.device=cpu", *arguments.settings], arguments.seconds
    flops = measured("matmul", given, seconds, AS_IT_IS)["flops"]
    why = "" if arguments.dtype or dtype == "bfloat16" else ": this processor has no instructions for bfloat16"
    print(f"{ROUNDS} rounds in {dtype}{why}; products of 4096 x 4096 at {flops / 1e9:,.0f} GFLOP/s")
    print(f"{'':<44}{'ours':>14}{'transformers':>14}{'ratio':>8}{'target':>11}")
    lines = []
    for name in chosen:
        for line in unequal_heads(given, seconds) if name == "heads" else compare(name, given, flops, seconds):
            print(line, flush=True)
            lines.append(line)
    return 0 if all(line.is_met for line in lines) else 1


def _dtype_of_this_cpu() -> str:
    from model_core.hardware.device import multiplies_bfloat16

    return "bfloat16" if multiplies_bfloat16(CPUINFO) else "float32"


if __name__ == "__main__":
    raise SystemExit(main())
