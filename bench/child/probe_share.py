"""Trains in its own process, times the probe of heads in it, and prints figures as JSON. bench/attention.py starts it.

    python bench/child/probe_share.py --config configs/quickstart.yaml --data-root DIR --run NAME

The arguments are those of `model_core.train`. What the probe takes is timed where the training calls it, because the
difference of two trainings is smaller than the noise of most machines.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from model_core.train import main as train  # noqa: E402 - needs sys.path
from model_core.training.head_probing import HeadHistory  # noqa: E402 - needs sys.path

_READINGS: list[float] = []


def _timed(read: Any) -> Any:
    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        read(*arguments)
        _READINGS.append(time.perf_counter() - began)

    return timed


def main() -> int:
    """Train, and print the time of the training and of each reading of the probe."""
    HeadHistory._read = _timed(HeadHistory._read)  # type: ignore[method-assign] # measured from outside
    began, cpu = time.perf_counter(), time.process_time()
    code = train(sys.argv[1:])
    figures = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "readings_s": _READINGS}
    print(json.dumps(figures))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
