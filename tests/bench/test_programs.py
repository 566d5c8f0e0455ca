"""The benchmarks run to their end, on a CPU with a tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
BENCH = Path(__file__).parents[2] / "bench"
SETTINGS = (
    "model.n_embd=24", "model.block_size=8", "training.sequence_length=8", "training.batch_size=2",
    "training.total_batch_size=16",
)  # fmt: skip
TINY = ["--seconds", "0", *(word for setting in SETTINGS for word in ("--set", setting))]


def printed(program: str, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and output of a program. Nothing is compiled, which would take minutes."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCH.parent), "TORCHDYNAMO_DISABLE": "1"}
    environment = {**os.environ, **settings}
    done = subprocess.run(
        [sys.executable, str(BENCH / program), *arguments], env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_all_stages_of_the_gpu_run_on_a_cpu() -> None:
    code, lines = printed("gpu.py", "--device", "cpu", *TINY, "--set", "model.n_layer=3")
    names = [
        "float32", "TF32", "bfloat16", "flash", "compile", "fused AdamW", "chunked cross entropy", "variable_heads",
        "... head_dim 64",
    ]  # fmt: skip
    assert (code, [line[:28].strip() for line in lines[2:11]]) == (0, names)
    assert all(float(line[28:40].replace(",", "")) > 0 for line in lines[2:11])
    assert len([line for line in lines if " %  " in line]) == 5


def test_the_table_of_trainings_has_every_line() -> None:
    code, lines = printed("train.py", *TINY)
    rows = [line.split("  ")[0].split(" (")[0].split(" of ")[0] for line in lines[2:]]
    assert rows == [
        "small: tokens/s", "small: peak memory, MiB", "small: MFU", "124M: tokens/s", "124M: peak memory, MiB",
        "124M: MFU", "variable_heads: time per step / uniform's",
    ]  # fmt: skip
    assert code in {0, 1}  # a model this small need not meet the targets


def test_a_step_without_matmuls_is_measured_for_both_shapes() -> None:
    code, lines = printed("overhead.py", *TINY)
    assert [line.split(" (")[0] for line in lines[2:]] == ["small: ms per step", "124M: ms per step"]
    assert code in {0, 1}


def test_generation_is_measured_beside_transformers_and_through_http() -> None:
    small = ["--set", "model.n_layer=2", "--set", "model.n_embd=48"]
    code, lines = printed("generate.py", "--quick", "--threads", "1", "--weights", "fp32", *small)
    rows = [re.split(r":| \(|\s{2,}", line.strip())[0] for line in lines]
    assert {"fp32, 1 at once", "fp32, 32 at once", "fp32", "124M, HTTP, 8 streams", "tiny, one token"} <= set(rows)
    assert rows[-2:] == ["longest gap beside a prompt of 1,000 tokens", "124M, 8 streams beside a training"]
    assert code in {0, 1}


def test_chunked_cross_entropy_takes_a_third_of_the_memory() -> None:
    options = json.dumps({"settings": ["device.dtype=float32"], "seconds": 0})
    peaks = [
        json.loads(printed("child/training.py", which, options)[1][-1])["memory_mib"] for which in ("chunked", "plain")
    ]
    assert peaks[0] <= 0.35 * peaks[1]
