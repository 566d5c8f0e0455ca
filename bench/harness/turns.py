"""Times several sides in turns in one process, and compares them by the medians of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from harness.table import Row

Seconds = Mapping[str, float]


def seconds(call: Callable[[], object]) -> float:
    """Time one call.

    Args:
        call: What is measured.

    Returns:
        Its wall time.
    """
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def take_turns(sides: Mapping[str, Callable[[], object]], rounds: int) -> list[Seconds]:
    """Time every side in every round, after one call of each that warms up; every other round is in reverse order.

    Args:
        sides: What is measured, by name.
        rounds: Number of rounds.

    Returns:
        Seconds of each side, one mapping a round.
    """
    for call in sides.values():
        call()
    order = list(sides)
    turns = (order if turn % 2 else order[::-1] for turn in range(rounds))
    return [{side: seconds(sides[side]) for side in turn} for turn in turns]


def ratio_row(
    what: str,
    ours: Sequence[float],
    plain: Sequence[float],
    target: float | None,
    *,
    base: Sequence[float] | None = None,
) -> Row:
    """Compare two sides of the same rounds.

    Args:
        what: Name of the row; the range of the ratios is added.
        ours: Seconds of the measured side.
        plain: Seconds of the side that it is compared with.
        target: Upper bound of the ratio.
        base: Seconds that are subtracted from ours, when only what is on top of them counts.

    Returns:
        The row, with the median of the ratios.
    """
    more = [one - less for one, less in zip(ours, base or [0.0] * len(ours), strict=True)]
    ratios = [one / other for one, other in zip(more, plain, strict=True)]
    shown = (f"{1000 * statistics.median(values):,.1f} ms" for values in (more, plain))
    return Row(f"{what} ({min(ratios):.2f}-{max(ratios):.2f})", *shown, statistics.median(ratios), target)


def time_row(what: str, took: Sequence[float], target_ms: float | None) -> Row:
    """Show the median of a time that has an absolute bound.

    Args:
        what: Name of the row.
        took: Seconds of each measurement.
        target_ms: Upper bound.

    Returns:
        The row, with the range as its baseline.
    """
    low, middle, high = (1000 * value for value in (min(took), statistics.median(took), max(took)))
    return Row(what, f"{middle:,.1f} ms", f"{low:,.0f}-{high:,.0f}", middle, target_ms, unit="ms")
