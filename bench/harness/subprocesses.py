"""Runs one measurement of `bench/child/training.py` in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "child" / "training.py"


def measure(
    what: str, settings: list[str], seconds: float, environment: Mapping[str, str], *, matmuls: bool = True
) -> dict[str, Any]:
    """Run one measurement.

    Args:
        what: Name of the measurement, such as ``ours`` or ``matmul``.
        settings: Configuration keys that differ from the baseline.
        seconds: Duration of the measurement.
        environment: Variables of the process.
        matmuls: False skips matmuls and attention.

    Returns:
        The figures that the process printed as JSON.
    """
    options = json.dumps({"settings": settings, "seconds": seconds, "matmuls": matmuls})
    command = [sys.executable, str(PROGRAM), what, options]
    finished = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{what} failed: {finished.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return figures
