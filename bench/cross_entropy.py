"""The head and its cross entropy in chunks, beside PyTorch's two functions one after the other.

    make bench NAME=cross_entropy

3072 rows, width 384, vocabulary 50304; forward and backward, in turns, each in a process of its own. Memory is what the
process takes at most above what it held with the inputs. Exits 1 when a target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator

from parts.line import Line
from parts.processes import measured

ROUNDS, SECONDS = 5, 3.0
TIME_TARGET, MEMORY_TARGET = 1.1, 0.35


def compare(dtype: str) -> Iterator[Line]:
    """Both in turns."""
    settings, rounds = [f"device.dtype={dtype}"], []
    for turn in range(ROUNDS):
        order = ("chunked", "plain") if turn % 2 else ("plain", "chunked")
        both = {who: measured(who, settings, SECONDS, os.environ) for who in order}
        rounds.append((both["chunked"], both["plain"]))
    for what, key, target, unit in (("time", "seconds", TIME_TARGET, 1e3), ("peak", "memory_mib", MEMORY_TARGET, 1)):
        ratios = [ours[key] / theirs[key] for ours, theirs in rounds]
        mine, others = (statistics.median(s[key] for s in sides) * unit for sides in zip(*rounds, strict=True))
        name = f"{what}, {'ms' if key == 'seconds' else 'MiB'} ({min(ratios):.2f}-{max(ratios):.2f}), {dtype}"
        yield Line(name, f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), target)


def main() -> int:
    """Print the table; the exit code."""
    print(f"{'':<44}{'chunked':>14}{'plain':>14}{'ratio':>8}{'target':>11}")
    lines = []
    for line in compare(sys.argv[1] if len(sys.argv) > 1 else "float32"):
        print(line, flush=True)
        lines.append(line)
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
