"""Jobs on a machine with two GPUs, as far as its driver's program says so."""

import pytest

pytestmark = pytest.mark.e2e

LISTING = "0, GPU-aa, NVIDIA H200, 143771\\n1, GPU-bb, NVIDIA H200, 143771\\n"


@pytest.fixture
def two_gpus(make_site, start_redis, tmp_path, monkeypatch):
    """Two workers of one host with two slots each; both see the same GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{LISTING}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    site = make_site(start_redis().url)
    site.start_worker(slots=2)
    site.start_worker(slots=2)
    return site


def test_gpus_are_shared_out_and_a_large_job_gets_its_turn(two_gpus):
    site = two_gpus
    small = site.submit("small", steps=60, step_s=0.05, resources={"gpus": 1})
    site.until_step(small, 1)
    large = site.submit("large", resources={"gpus": 2})
    later = site.submit("later", resources={"gpus": 1})
    on_cpu = site.until(site.submit("on-cpu", resources={"gpus": 0}), "succeeded")

    jobs = [site.until(job_id, "succeeded", timeout_s=60) for job_id in (small, large, later)]

    assert on_cpu.worker.device == "cpu"
    assert on_cpu.finished_at < jobs[0].finished_at  # it needs none, so it passes
    assert jobs[1].worker.device == "cuda:0,1"
    assert jobs[0].finished_at <= jobs[1].started_at
    assert jobs[1].finished_at <= jobs[2].started_at  # though a GPU was free for it all the time
    assert jobs[2].worker.device in {"cuda:0", "cuda:1"}
