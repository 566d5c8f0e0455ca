"""Rowar map and cross entropy of the head, in chunks, compared with PyTorch's two functions at once.

    make bench NAME=cross_entropy

3072 rows, width 384, vocabulary 50304; forward and backward, alternating, each in its own process. Memory is the peak
of the process minus its size with the inputs. Exits 1 when a target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator

from harness.subprocesses import measure
from harness.table import Row, header, print_rows

ROUNDS, SECONDS = 5, 3.0
TIME_TARGET, MEMORY_TARGET = 1.1, 0.35


def compare(dtype: str) -> Iterator[Row]:
    """Compare both implementations in one number format."""
    settings, rounds = [f"device.dtype={dtype}"], []
    for turn in range(ROUNDS):
        order = ("chunked", "plain") if turn % 2 else ("plain", "chunked")
        both = {side: measure(side, settings, SECONDS, os.environ) for side in order}
        rounds.append((both["chunked"], both["plain"]))
    for what, key, target, unit in (("time", "seconds", TIME_TARGET, 1e3), ("peak", "memory_mib", MEMORY_TARGET, 1)):
        ratios = [ours[key] / theirs[key] for ours, theirs in rounds]
        mine, others = (statistics.median(s[key] for s in sides) * unit for sides in zip(*rounds, strict=True))
        name = f"{what}, {'ms' if key == 'seconds' else 'MiB'} ({min(ratios):.2f}-{max(ratios):.2f}), {dtype}"
        yield Row(name, f"{mine:,.0f}", f"{others:,.0f}", statistics.median(ratios), target)


def main() -> int:
    """Print the table and return the exit code."""
    print(header("chunked", "plain"))
    return print_rows(compare(sys.argv[1] if len(sys.argv) > 1 else "float32"))


if __name__ == "__main__":
    raise SystemExit(main())
