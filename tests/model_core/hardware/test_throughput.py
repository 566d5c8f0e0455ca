"""Throughput, waiting and MFU from measured times."""

import pytest

from model_core.budget import compute_budget
from model_core.config import ExperimentConfig
from model_core.hardware.throughput import ThroughputMeter, peak_flops, throughput_summary


@pytest.mark.parametrize(
    ("gpu", "dtype", "tf32", "tera"),
    [
        ("NVIDIA H200", "bfloat16", True, 989.4),
        ("NVIDIA H100 80GB HBM3", "float16", True, 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", True, 756.0),
        ("NVIDIA A100-SXM4-80GB", "float32", True, 156.0),
        ("NVIDIA A100-SXM4-80GB", "float32", False, 19.5),
        ("NVIDIA A10", "bfloat16", True, 125.0),
        ("NVIDIA L4", "bfloat16", True, 121.0),
        ("NVIDIA L40S", "bfloat16", True, 362.0),
        ("NVIDIA GeForce RTX 3090", "bfloat16", True, 71.0),
        ("NVIDIA GeForce RTX 4090", "float16", True, 165.2),
        ("Tesla T4", "float16", False, 65.0),
    ],
)
def test_the_peak_belongs_to_the_card_and_the_number_format(gpu: str, dtype: str, tf32: bool, tera: float) -> None:
    assert peak_flops(gpu, dtype, tf32=tf32) == tera * 1e12


@pytest.mark.parametrize(
    "gpu",
    ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Other"],
)
def test_a_card_that_is_not_on_file_has_no_peak(gpu: str) -> None:
    assert peak_flops(gpu, "bfloat16", tf32=True) is None


def test_a_summary_reports_speed_waiting_and_use_of_the_gpu() -> None:
    meter = ThroughputMeter()
    meter.add(tokens=400_000, seconds=1.0, waiting_s=0.1)
    meter.add(tokens=600_000, seconds=1.0, waiting_s=0.2)
    flops = compute_budget(ExperimentConfig()).flops_per_token
    told = throughput_summary(meter, flops, gpu="NVIDIA H200", dtype="bfloat16", tf32=True)
    assert told == {"tokens_per_s": 500_000.0, "data_wait_share": 0.15, "mfu": pytest.approx(0.4344, abs=0.005)}


@pytest.mark.parametrize(
    ("gpu", "says"), [(None, "NVIDIA GPUs"), ("Other", "no published peak is on file for 'Other' in bfloat16")]
)
def test_without_a_peak_the_use_is_null_with_a_reason(gpu: str | None, says: str) -> None:
    told = throughput_summary(ThroughputMeter(1000, 2.0, 0.0), 10**9, gpu=gpu, dtype="bfloat16", tf32=False)
    assert (told["tokens_per_s"], told["mfu"]) == (500.0, None)
    assert says in told["mfu_reason"]


def test_without_a_step_there_is_no_speed() -> None:
    told = throughput_summary(ThroughputMeter(), 10**9, gpu="NVIDIA H200", dtype="bfloat16", tf32=True)
    assert (told["tokens_per_s"], told["mfu"], told["mfu_reason"]) == (None, None, "no step was taken")
