"""What a training step on a CPU costs besides its matrix products, beside transformers, in bfloat16.

    make bench NAME=overhead [or: python bench/overhead.py --only small]

A processor without instructions for bfloat16 emulates the products of that format, many times slower than float32's,
and so hides everything else. Here products and fused attention answer at once (parts/hollow.py), in ours and in
transformers alike: what is left are the passes over memory, and the pages that the system hands out for them. Exits 1
where ours takes longer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from parts.line import Line
from parts.turns import ROUNDS, SECONDS, SHAPES, in_turns


def compare(shape: str, given: Sequence[str], seconds: float) -> Line:
    """A step of ours beside one of transformers."""
    rounds = [
        [1000 / side["steps_per_s"] for side in sides]
        for sides in in_turns([*SHAPES[shape], *given], seconds, hollow=True)
    ]
    ratios = [ours / theirs for ours, theirs in rounds]
    mine, others = (statistics.median(sides) for sides in zip(*rounds, strict=True))
    what = f"{shape}: ms a step ({min(ratios):.2f}-{max(ratios):.2f})"
    return Line(what, f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(SHAPES), action="append")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a measurement")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V")
    arguments = parser.parse_args(argv)
    given = ["device.dtype=bfloat16", "device.device=cpu", *arguments.settings]
    print(f"{ROUNDS} rounds in bfloat16, without products")
    print(f"{'':<44}{'ours':>14}{'transformers':>14}{'ratio':>8}{'target':>11}")
    lines = []
    for shape in arguments.only or SHAPES:
        lines.append(compare(shape, given, arguments.seconds))
        print(lines[-1], flush=True)
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
