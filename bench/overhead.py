"""Time of everything except matmuls in a training step on the CPU, beside transformers, in bfloat16.

    make bench NAME=overhead [or: python bench/overhead.py --only small]

A processor without bfloat16 instructions emulates matmuls in that format, many times slower than in float32, which
hides everything else. Here Headcount and transformers skip matmuls and fused attention (harness/without_matmuls.py):
what remains are passes over memory, and the page faults that they cause. Exits 1 when Headcount takes longer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from harness.comparison import ROUNDS, SECONDS, SHAPES, alternate
from harness.table import Row, header, print_rows


def compare(shape: str, given: Sequence[str], seconds: float) -> Row:
    """Compare a step of Headcount with one of transformers."""
    rounds = [
        [1000 / side["steps_per_s"] for side in sides]
        for sides in alternate([*SHAPES[shape], *given], seconds, matmuls=False)
    ]
    ratios = [ours / theirs for ours, theirs in rounds]
    mine, others = (statistics.median(sides) for sides in zip(*rounds, strict=True))
    what = f"{shape}: ms per step ({min(ratios):.2f}-{max(ratios):.2f})"
    return Row(what, f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(SHAPES), action="append")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of one measurement")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    given = ["device.dtype=bfloat16", "device.device=cpu", *arguments.settings]
    print(f"{ROUNDS} rounds in bfloat16, without matmuls")
    print(header("Headcount", "transformers"))
    return print_rows(compare(shape, given, arguments.seconds) for shape in arguments.only or SHAPES)


if __name__ == "__main__":
    raise SystemExit(main())
