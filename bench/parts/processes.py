"""Measurements in processes of their own, and a line of a table about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "child" / "training.py"


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    what: str
    figure: str
    baseline: str
    value: float
    target: float
    higher_is_better: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.higher_is_better else self.value <= self.target

    def __str__(self) -> str:
        target = f"{'>=' if self.higher_is_better else '<='} {self.target:g}"
        verdict = "ok" if self.is_met else "NOT MET"
        return f"{self.what:<44}{self.figure:>14}{self.baseline:>14}{self.value:>8.2f}{target:>11}  {verdict}"


def measured(what: str, settings: list[str], seconds: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one measurement of `bench/child/training.py`; what it printed."""
    asked = json.dumps({"settings": settings, "seconds": seconds})
    command = [sys.executable, str(PROGRAM), what, asked]
    finished = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{what} failed: {finished.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found
