"""The estimate of memory against what a training process really takes.

Measured from outside, as a worker would see it: the peak of the whole process (VmHWM) less what it held when torch
was imported (VmRSS). It is a normal run, with validation, samples and every kind of checkpoint. A minute each; some
times longer on a processor without instructions for bfloat16.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_core.budget import budget_of
from model_core.loading import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ("model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.block_size=256")
NARROW = ("model.head_dim=64",)
PROGRAM = """
import re, sys, torch
from pathlib import Path

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

imported = kib("VmRSS")
from model_core.train import main
assert main(sys.argv[1:]) == 0
print(kib("VmHWM") - imported)
"""


def peak_mib(file: Path, settings: list[str]) -> int:
    """MiB that a training takes at most, above the import of torch."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-c", PROGRAM, "--config", str(file), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) // 1024


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells the peak on Linux alone")
@pytest.mark.parametrize(
    ("preset", "rows", "shape"),
    [("baseline", 12, SMALL), ("baseline", 4, ()), ("variable_heads", 4, NARROW)],
    ids=["L6-C384-T256-B12", "124M-T256-B4", "variable_heads-head_dim-64"],
)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    preset: str, rows: int, shape: tuple[str, ...], tmp_path: Path
) -> None:
    splits = {"train": 100_000, "val": 400, "test": 400}
    ids = np.random.default_rng(0).integers(0, 50257, max(splits.values())).astype(np.uint16)
    for split, tokens in splits.items():
        np.save(tmp_path / f"random_{split}.npy", ids[:tokens])
    settings = [
        *shape, f"training.batch_size={rows}", "training.sequence_length=256",
        f"training.total_batch_size={2 * rows * 256}", "training.max_steps=2", "training.warmup_steps=1",
        "device.device=cpu", "device.dtype=bfloat16", f"output.exp_dir={tmp_path / 'exp'}", f"data.data_dir={tmp_path}",
        *(f"data.{split}_file=random_{split}.npy" for split in splits),
        "evaluation.val_max_steps=1", "evaluation.sample_length=4", "evaluation.checkpoint_every=1",
    ]  # fmt: skip
    file = CONFIGS / f"{preset}.yaml"
    estimate = budget_of(load_config(file, settings)).memory.total_bytes >> 20
    assert estimate == pytest.approx(peak_mib(file, settings), rel=0.20)
