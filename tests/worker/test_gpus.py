"""GPUs of a machine: discovery and sharing."""

import pytest

from worker.gpus import Gpu, GpuPool, find_gpus, memory_bytes

LISTING = "0, GPU-aa, NVIDIA H200, 143771\n1, GPU-bb, NVIDIA H200, 143771\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{LISTING}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
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
    pool = GpuPool((Gpu(0, "GPU-aa", "g", 1), Gpu(1, "GPU-bb", "g", 1)))
    assert pool.allocate(("GPU-bb",), "job_1") == (1,)
    assert (pool.idle, pool.holder("GPU-bb")) == (("GPU-aa",), "job_1")
    with pytest.raises(ValueError, match="GPU-bb"):
        pool.allocate(("GPU-bb", "GPU-aa"), "job_2")
    pool.release("job_1")
    assert pool.idle == ("GPU-aa", "GPU-bb")


def test_memory_is_known():
    assert memory_bytes() > 2**28


@pytest.fixture
def two_gpus(make_site, start_redis, driver):
    """Two workers of one host with two slots each; both see the same GPUs."""
    site = make_site(start_redis().url)
    site.start_worker(slots=2)
    site.start_worker(slots=2)
    return site


@pytest.mark.e2e
def test_gpus_are_shared_out_and_a_large_job_gets_its_turn(two_gpus):
    site = two_gpus
    small = site.submit("small", steps=10_000, step_s=0.05, resources={"gpus": 1})
    site.until_step(small, 1)
    large = site.submit("large", resources={"gpus": 2})
    later = site.submit("later", resources={"gpus": 1})

    on_cpu = site.until(site.submit("on-cpu", resources={"gpus": 0}), "succeeded")  # it needs none, so it passes
    waiting = [site.job(job_id).status for job_id in (small, large, later)]
    site.store.request_action(small, "cancel")
    jobs = [site.until(small, "cancelled"), *(site.until(job_id, "succeeded") for job_id in (large, later))]

    assert (on_cpu.worker.device, waiting) == ("cpu", ["running", "queued", "queued"])
    assert jobs[1].worker.device == "cuda:0,1"
    assert jobs[0].finished_at <= jobs[1].started_at
    assert jobs[1].finished_at <= jobs[2].started_at  # though a GPU was free for it all the time
    assert jobs[2].worker.device in {"cuda:0", "cuda:1"}
