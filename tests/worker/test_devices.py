import pytest

from worker.devices import Devices, Gpu, find_gpus, memory_bytes

LISTING = "0, GPU-aa, NVIDIA H200, 143771\n1, GPU-bb, NVIDIA H200, 143771\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{LISTING}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_of_the_driver(driver):
    assert find_gpus() == (
        Gpu(0, "GPU-aa", "NVIDIA H200", 143771 * 2**20),
        Gpu(1, "GPU-bb", "NVIDIA H200", 143771 * 2**20),
    )


@pytest.mark.parametrize(("visible", "indices"), [("1", [1]), ("GPU-aa", [0]), ("", [])])
def test_hidden_gpus_are_left_alone(driver, monkeypatch, visible, indices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in find_gpus()] == indices


def test_machine_without_driver_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == ()


def test_a_gpu_belongs_to_one_job_at_a_time():
    devices = Devices((Gpu(0, "GPU-aa", "g", 1), Gpu(1, "GPU-bb", "g", 1)))
    assert devices.take(("GPU-bb",), "job_1") == (1,)
    assert (devices.idle, devices.holder("GPU-bb")) == (("GPU-aa",), "job_1")
    with pytest.raises(ValueError, match="GPU-bb: no idle GPU"):
        devices.take(("GPU-bb", "GPU-aa"), "job_2")
    devices.give_back("job_1")
    assert devices.idle == ("GPU-aa", "GPU-bb")


def test_memory_is_known():
    assert memory_bytes() > 2**28
