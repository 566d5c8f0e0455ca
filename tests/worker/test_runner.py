"""Jobs that the worker itself cannot run end at once."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from model_core.hardware.process_environment import usable_cores
from model_core.storage.events import read_events
from tests.worker.harness import submit_job
from worker.gpus import GpuPool
from worker.jobs.redis_client import PREFIX
from worker.jobs.settings import WorkerSettings
from worker.jobs.worker_store import WorkerStore
from worker.runner import Runner


@pytest.fixture
def settings(redis_url, tmp_path):
    return WorkerSettings(data=tmp_path, redis_url=redis_url, crash_budget=1)


class Misnaming(WorkerStore):
    """Hands out a run that no directory may be called."""

    def claim(self, *args, **options):
        return replace(super().claim(*args, **options), run="../x")


def test_job_that_the_worker_refuses_fails_with_the_code(settings, store, make_spec, connected):
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    misnaming = Misnaming(connected(settings.redis_url, for_api=False), settings)
    Runner(misnaming, settings, GpuPool(()), slots=1).run_next()
    job = store.get(job_id)
    assert (job.status, job.error.code) == ("failed", "invalid_parameter")


def test_job_of_a_kind_that_only_a_newer_version_knows_fails(settings, store, make_spec):
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    store._redis.hset(f"{PREFIX}job:{job_id}", "kind", "distill")
    Runner(store, settings, GpuPool(()), slots=1).run_next()
    job = store.get(job_id)
    assert (job.status, job.error.code) == ("failed", "not_available")


def test_child_that_cannot_be_started_is_a_crash(settings, store, make_spec):
    (settings.data / "jobs").write_text("in the way")
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    Runner(store, settings, GpuPool(()), slots=1).run_next()
    job = store.get(job_id)
    assert (job.status, job.error.code) == ("failed", "crash_budget")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_disk_that_is_full_before_the_child_starts_is_named(settings, store, make_spec):
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    directory = settings.data / "jobs" / job_id
    directory.mkdir(parents=True)
    (directory / f".config.yaml.{os.getpid()}-{threading.get_ident()}.tmp").symlink_to("/dev/full")
    Runner(store, settings, GpuPool(()), slots=1).run_next()
    job = store.get(job_id)
    assert (job.status, job.error.code) == ("failed", "disk_full")


@pytest.mark.parametrize(("slots", "processes"), [(1, 1), (2, 1), (1, 2)], ids=["alone", "slots", "processes"])
def test_jobs_share_the_cores_of_their_worker(settings, store, make_spec, monkeypatch, slots: int, processes: int):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fakes = settings.model_copy(update={"kind_modules": {"train": "tests.worker.fake_child"}})
    job = submit_job(store, make_spec("one", resources={"processes": processes}), fingerprint="f").job
    Runner(store, fakes, GpuPool(()), slots=slots).run_next()
    assert store.get(job.id).status == "succeeded"
    (start,) = (event for event in read_events(settings.layout.run("one") / "events.jsonl") if event["type"] == "start")
    assert start["threads"] == str(max(1, usable_cores() // (slots * processes)))
