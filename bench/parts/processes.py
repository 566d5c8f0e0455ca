"""Measurements in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "child" / "training.py"


def measured(
    what: str, settings: list[str], seconds: float, environment: Mapping[str, str], *, hollow: bool = False
) -> dict[str, Any]:
    """Run one measurement of `bench/child/training.py`, `hollow` without products; what it printed."""
    asked = json.dumps({"settings": settings, "seconds": seconds, "hollow": hollow})
    command = [sys.executable, str(PROGRAM), what, asked]
    finished = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{what} failed: {finished.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found
