"""The memory estimate compared with the measured peak of a training process.

Measured as a worker sees it: the peak of the whole process (VmHWM) less what it held when torch was imported (VmRSS).
It is a normal run with validation, samples and every kind of checkpoint. It begins with the state of a run that took
one short step, so that the optimizer's state is there, and takes one step of two micro batches: the second finds
gradients, and no step can take more. Where the processor emulates bfloat16, which takes a quarter of an hour, the
matmuls are skipped: all tensors are the same.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_core.budget import compute_budget
from model_core.config_loader import load_config
from model_core.hardware.device import has_bfloat16

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
CPUINFO = Path("/proc/cpuinfo")
SMALL = ("model.n_layer=6", "model.n_head=6", "model.n_embd=384", "model.block_size=256")
NARROW = ("model.head_dim=64",)
PROGRAM = """
import contextlib, re, sys, torch
from pathlib import Path

sys.path.append(sys.argv.pop(1))
from harness.without_matmuls import skip_matmuls

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

context = {"skip": skip_matmuls, "compute": contextlib.nullcontext}[sys.argv.pop(1)]
imported = kib("VmRSS")
from model_core.train import main
with context():
    assert main(sys.argv[1:]) == 0
print(kib("VmHWM") - imported)
"""


def arguments(file: Path, run: str, settings: list[str]) -> list[str]:
    return ["--config", str(file), "--run", run, *(word for setting in settings for word in ("--set", setting))]


def done(*command: str) -> str:
    finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status tells the peak on Linux alone")
@pytest.mark.parametrize(
    ("preset", "rows", "shape"),
    [("baseline", 12, SMALL), ("baseline", 4, ()), ("variable_heads", 4, NARROW)],
    ids=["L6-C384-T256-B12", "124M-T256-B4", "variable_heads-head_dim-64"],
)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    preset: str, rows: int, shape: tuple[str, ...], tmp_path: Path, seen: Callable[[str, str], None]
) -> None:
    splits = {"train": 100_000, "val": 400, "test": 400}
    ids = np.random.default_rng(0).integers(0, 50257, max(splits.values())).astype(np.uint16)
    for split, tokens in splits.items():
        np.save(tmp_path / f"random_{split}.npy", ids[:tokens])
    common = [
        *shape, "device.device=cpu", "device.dtype=bfloat16", "training.warmup_steps=0",
        *(f"data.{split}_file=random_{split}.npy" for split in splits), f"data.data_dir={tmp_path}",
        f"output.exp_dir={tmp_path / 'exp'}", "evaluation.sample_length=4", "evaluation.checkpoint_every=2",
    ]  # fmt: skip
    short = ["training.batch_size=1", "training.sequence_length=8", "training.total_batch_size=8"]
    measured = [
        f"training.batch_size={rows}", "training.sequence_length=256", f"training.total_batch_size={2 * rows * 256}",
        "training.max_steps=2", "checkpoint.load_checkpoint=first",
    ]  # fmt: skip
    file = CONFIGS / f"{preset}.yaml"
    estimate = compute_budget(load_config(file, [*common, *measured])).memory.total_bytes / 2**20
    matmuls = "compute" if has_bfloat16(CPUINFO) else "skip"
    done("-m", "model_core.train", *arguments(file, "first", [*common, *short, "training.max_steps=1"]))
    second = arguments(file, "second", [*common, *measured])
    peak = int(done("-c", PROGRAM, str(ROOT / "bench"), matmuls, *second)) / 2**10
    what = f"memory, {rows} rows of {preset} {' '.join(shape)}, matmuls {matmuls}"
    seen(what, f"{peak:,.0f} MiB measured, {estimate:,.0f} estimated: {estimate / peak:.2f}")
    assert estimate == pytest.approx(peak, rel=0.20)
