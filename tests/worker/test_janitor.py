"""Periodic work of a worker: heartbeat, wake-ups and reaping."""

import pytest

from tests.polling import eventually
from tests.worker.harness import submit_job
from worker.gpus import GpuPool
from worker.janitor import Janitor
from worker.jobs.redis_client import Registry
from worker.jobs.settings import JobSettings, WorkerSettings
from worker.jobs.worker_store import WorkerStore
from worker.runner import Runner


@pytest.fixture
def rung():
    return []


@pytest.fixture
def janitor(redis_url, tmp_path, rung, connected):
    settings = WorkerSettings(data=tmp_path, redis_url=redis_url)
    client = connected(redis_url, for_api=False)
    store = WorkerStore(client, settings)
    runner = Runner(store, settings, GpuPool(()), slots=1)
    return Janitor(store, Registry(client), runner, settings, lambda: rung.append("ring"))


def test_worker_with_a_free_slot_is_woken_for_a_job_that_fits(janitor, store, make_spec, rung):
    janitor.tick()
    assert rung == []
    submit_job(store, make_spec("gpu", resources={"gpus": 1}), fingerprint="f")
    janitor.tick()
    assert rung == []
    submit_job(store, make_spec("cpu"), fingerprint="f")
    janitor.tick()
    assert rung == ["ring"]


def test_a_worker_registers_and_deregisters(janitor, redis_url, connected):
    registry = Registry(connected(redis_url, for_api=True))
    janitor.tick()
    (facts,) = registry.alive("workers")
    assert (facts["slots"], facts["busy"], facts["gpus"]) == (1, 0, [])
    janitor.leave()
    assert registry.alive("workers") == []


def test_new_worker_takes_nothing_before_it_has_watched_the_clock(
    aged_redis_url, tmp_path, make_spec, claim_one, connected
):
    settings = WorkerSettings(data=tmp_path, redis_url=aged_redis_url, lease_s=0.9, beat_s=0.1, janitor_s=0.3)
    client = connected(aged_redis_url, for_api=False)
    store = WorkerStore(client, settings)
    runner = Runner(store, settings, GpuPool(()), slots=1)
    janitor = Janitor(store, Registry(client), runner, settings, lambda: None)
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    claim_one()
    client.zadd("headcount:leases", {job_id: 1})
    janitor.tick()
    assert store.get(job_id).status == "running"
    eventually(lambda: [janitor.tick(), store.get(job_id).status][1] == "queued")


class WatchedStore(WorkerStore):
    """A server whose clock moves when the test says so."""

    now_s = 1000.0

    def time_s(self) -> float:
        return self.now_s


def test_frozen_server_postpones_reaping(aged_redis_url, tmp_path, make_spec, claim_one, connected):
    settings = JobSettings(data=tmp_path, redis_url=aged_redis_url, lease_s=0.9, beat_s=0.1, janitor_s=1e-6)
    client = connected(aged_redis_url, for_api=False)
    store = WatchedStore(client, settings)
    runner = Runner(store, WorkerSettings(), GpuPool(()), slots=1)
    janitor = Janitor(store, Registry(client), runner, settings, lambda: None)
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id

    def status_after(jump_s):
        client.zadd("headcount:leases", {job_id: 1})  # ran out long ago
        store.now_s += jump_s
        janitor.tick()
        return store.get(job_id).status

    claim_one("a")
    assert status_after(0.0) == "queued"
    claim_one("b")
    assert [status_after(jump_s) for jump_s in (100.0, 0.2, 0.2)] == ["running"] * 3
    assert [status_after(jump_s) for jump_s in (0.2, 0.2, 0.2)][-1] == "queued"
