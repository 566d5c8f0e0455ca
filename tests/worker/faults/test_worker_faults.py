"""Faults of a worker: killed, terminated, frozen; and two workers with different addresses of Redis."""

import signal
import sys
import time

import pytest

from tests.polling import eventually, seconds_until
from tests.process import is_over

pytestmark = pytest.mark.e2e


def test_killed_worker_loses_its_job_to_another(hurried, child, seen):
    _, site = hurried(child=child)
    worker = site.start_worker()
    job_id = site.submit("orphan", steps=60, step_s=0.05)
    process = site.until_step(job_id, 3)
    site.start_worker()

    worker.kill()
    worker.wait()
    eventually(lambda: is_over(process))  # it saved at the end of its pipe
    seconds = seconds_until(lambda: site.event_log("orphan").resumed)
    job = site.until(job_id, "succeeded")

    log = site.event_log("orphan")
    log.check(60)
    assert "the worker was lost" in [change.reason for change in job.history]
    assert log.steps == list(range(1, 61))  # none twice
    seen(f"kill -9 of the worker, {child}", f"taken over {seconds:.1f} s after its child had saved, 0 steps repeated")


def test_terminated_worker_saves_requeues_and_leaves(hurried, child, seen):
    _, site = hurried(child=child)
    worker = site.start_worker()
    job_id = site.submit("moved", steps=60, step_s=0.05)
    process = site.until_step(job_id, 2)

    worker.terminate()
    seconds = seconds_until(lambda: worker.poll() is not None)

    assert is_over(process)
    assert site.job(job_id).status == "queued"
    saved = site.event_log("moved").of("checkpoint")[-1]["step"]
    site.start_worker()
    assert site.until(job_id, "succeeded").attempt == 2
    log = site.event_log("moved")
    log.check(60)
    assert log.resumed == [(2, saved)]
    seen(f"SIGTERM of the worker, {child}", f"saved at step {saved}, requeued and gone after {seconds:.1f} s")


def test_signals_that_interrupt_each_other_are_as_one(hurried):
    _, site = hurried()
    worker = site.start_worker()
    job_id = site.submit("stormed", steps=1000, step_s=0.05)
    process = site.until_step(job_id, 2)

    for _ in range(1000):
        worker.terminate()
        time.sleep(0.0001)
    eventually(lambda: worker.poll() is not None)

    assert is_over(process)
    assert site.job(job_id).status == "queued"


@pytest.mark.slow
def test_frozen_worker_never_makes_two_trainers(hurried, child, seen):
    _, site = hurried(child=child)
    frozen = site.start_worker()
    job_id = site.submit("frozen-worker", steps=300, step_s=0.05)
    process = site.until_step(job_id, 3)
    frozen.send_signal(signal.SIGSTOP)
    site.start_worker()
    eventually(lambda: "another process holds the run" in [change.reason for change in site.job(job_id).history])
    assert not is_over(process)  # its lock kept the second one out

    frozen.send_signal(signal.SIGCONT)
    fenced = seconds_until(lambda: is_over(process))
    job = site.until(job_id, "succeeded", timeout_s=60)

    log = site.event_log("frozen-worker")
    log.check(300)
    assert log.steps == list(range(1, 301))
    seen(f"worker frozen, {child}", f"second trainer refused, the first fenced {fenced:.1f} s after it went on; "
         f"attempt {job.attempt}")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="it has one loopback address")
def test_workers_that_reach_redis_by_two_addresses_share_the_queue(hurried, seen):
    server, site = hurried(addresses=("127.0.0.1", "127.0.0.2"))
    first = site.start_worker(redis_url=server.url)
    second = site.start_worker(redis_url=server.url.replace("127.0.0.1", "127.0.0.2"))
    eventually(lambda: len(site.registry.alive("workers")) == 2)
    jobs = [site.submit(run, steps=60, step_s=0.05) for run in ("one", "two")]
    assert {site.until_step(job_id, 1).ppid() for job_id in jobs} == {first.pid, second.pid}

    second.kill()
    done = [site.until(job_id, "succeeded") for job_id in (*jobs, site.submit("three"))]

    assert {job.worker.id.rpartition(":")[2] for job in done} == {str(first.pid)}
    logs = [site.event_log(run) for run in ("one", "two")]
    assert sorted(len(log.attempts) for log in logs) == [1, 2]
    logs[0].check(60)
    logs[1].check(60)
    seen("two addresses of one Redis", "two workers shared the queue, one took over from the other")
