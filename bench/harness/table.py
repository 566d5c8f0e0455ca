"""Rows of a benchmark's table: a figure, its baseline, and whether the target is met."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured value, compared with a target.

    Attributes:
        what: First column: the name of the measurement.
        figure: Second column: the measured figure, formatted.
        baseline: Third column: the figure of the baseline, formatted.
        value: Compared with the target; usually the ratio of figure and baseline. None where there is none.
        target: Bound of the value; None has none.
        higher_is_better: Whether the target is a lower bound.
        unit: Printed after value and target.
    """

    what: str
    figure: str
    baseline: str
    value: float | None
    target: float | None
    higher_is_better: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the target is met, if there is one."""
        if self.target is None or self.value is None:
            return True
        return self.value >= self.target if self.higher_is_better else self.value <= self.target

    def __str__(self) -> str:
        ratio = "" if self.value is None else f"{self.value:>8.2f}{self.unit:2}"
        line = f"{self.what:<44}{self.figure:>14}{self.baseline:>14}{ratio:10}"
        if self.target is None:
            return line.rstrip()
        target = f"{'>=' if self.higher_is_better else '<='} {self.target:g}{self.unit}"
        return f"{line}{target:>9}  {'ok' if self.is_met else 'NOT MET'}"


def header(figure: str, baseline: str, value: str = "ratio") -> str:
    """Format the first row of a table.

    Args:
        figure: Title of the second column.
        baseline: Title of the third column.
        value: Title of the fourth column.

    Returns:
        A row with the columns of `Row`.
    """
    return f"{'':<44}{figure:>14}{baseline:>14}{value:>8}{'target':>11}"


def print_rows(rows: Iterable[Row]) -> int:
    """Print rows as they are measured.

    Args:
        rows: The measurements.

    Returns:
        Exit code: 0 if all targets are met, else 1.
    """
    all_met = True
    for row in rows:
        print(row, flush=True)
        all_met = all_met and row.is_met
    return 0 if all_met else 1
