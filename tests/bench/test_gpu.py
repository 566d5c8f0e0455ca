"""Rows of the GPU benchmark, on a CPU with a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
TINY = [
    "model.n_layer=1", "model.n_embd=8", "model.n_head=2", "model.block_size=8", "training.batch_size=1",
    "training.sequence_length=8", "training.total_batch_size=8", "device.device=cpu", "device.threads=1",
]  # fmt: skip
PROGRAM = f"""
import pathlib, sys
sys.path.insert(0, {str(BENCH)!r})
import gpu
for stage in gpu.stages()[3:]:
    print(gpu.measured_row(stage, stage.name, {TINY!r}, 0.01, pathlib.Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_row_ends_with_the_failure_of_its_compilation(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    rows = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [" compile_failed: " in row for row in rows] == [False, True, True, True]
