"""One line of a bench's table: a figure, what it stands beside, and whether the target is met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A figure beside another, held to a target."""

    what: str
    figure: str
    baseline: str
    value: float
    target: float
    higher_is_better: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.higher_is_better else self.value <= self.target

    def __str__(self) -> str:
        target = f"{'>=' if self.higher_is_better else '<='} {self.target:g}{self.unit}"
        verdict, ratio = "ok" if self.is_met else "NOT MET", f"{self.value:>8.2f}{self.unit:2}"
        return f"{self.what:<44}{self.figure:>14}{self.baseline:>14}{ratio}{target:>9}  {verdict}"
