"""Faults of Redis: stopped, frozen, killed with a full queue; and lost wake-ups."""

import signal
import time

import pytest

from tests.polling import eventually, seconds_until
from worker.jobs import commands
from worker.jobs.store import JobStore

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("child", "seconds"), [("fake", 2), pytest.param("real", 20, marks=pytest.mark.slow)])
def test_redis_stopped_for_a_while_does_not_disturb_the_child(hurried, child, seconds, seen):
    server, site = hurried(child=child, lease_s=60.0, beat_s=0.5)
    site.start_worker()
    steps = 30 + 25 * seconds
    job_id = site.submit("patient", steps=steps, step_s=0.05)
    site.until_step(job_id, 3)

    server.kill()
    time.sleep(seconds)
    told = site.event_log("patient").steps[-1]
    server.start()
    caught_up = seconds_until(lambda: site.job(job_id).progress.step >= told)
    job = site.until(job_id, "succeeded", timeout_s=90)

    log = site.event_log("patient")
    log.check(steps)
    assert told > 15
    assert (job.attempt, job.progress.step) == (1, steps)
    assert [event["seq"] for event in site.store.events(job_id, limit=1000)] == [e["seq"] for e in log.events]
    seen(f"Redis stopped {seconds} s, {child}", f"{told} steps meanwhile, caught up in {caught_up:.1f} s, 1 start")


@pytest.mark.slow
def test_frozen_redis_costs_no_attempt(hurried, child, seen):
    server, site = hurried(child=child)
    site.start_worker()
    site.start_worker()
    job_id = site.submit("frozen", steps=160, step_s=0.05)
    site.until_step(job_id, 3)

    server.send(signal.SIGSTOP)
    time.sleep(4.0)  # two leases
    told = site.event_log("frozen").steps[-1]
    server.send(signal.SIGCONT)
    caught_up = seconds_until(lambda: site.job(job_id).progress.step >= told)

    assert site.until(job_id, "succeeded", timeout_s=60).attempt == 1
    site.event_log("frozen").check(160)
    seen(f"Redis frozen two leases, {child}", f"same epoch, 1 start, caught up in {caught_up:.1f} s")


def test_redis_killed_with_a_full_queue_loses_no_job(hurried, seen):
    server, site = hurried(lease_s=60.0, beat_s=0.5)
    site.start_worker(slots=3)
    running = [site.submit(f"running-{n}", steps=120, step_s=0.05) for n in range(3)]
    eventually(lambda: [site.job(job_id).progress.step > 2 for job_id in running] == [True] * 3)
    queued = [site.submit(f"queued-{n}", ring=False) for n in range(50)]

    server.kill()
    server.start()

    found = {job.id: job for job in _all_jobs(site.store)}
    assert found.keys() == {*running, *queued}
    assert [found[job_id].status for job_id in running] == ["running"] * 3
    assert [found[job_id].queue.jobs_ahead for job_id in queued] == list(range(50))
    for job_id in queued[1:]:
        site.store.request_action(job_id, "cancel")
    done = [site.until(job_id, "succeeded") for job_id in (*running, queued[0])]
    assert [job.attempt for job in done] == [1] * 4
    seen("Redis kill -9, 3 running and 50 queued, fake", f"{len(found)} of 53 accounted for, 1 start each")


def _all_jobs(store: JobStore):
    page = store.run(commands.page(limit=20))
    yield from page.jobs()
    while page.has_more:
        page = store.run(commands.page(limit=20, after=page.jobs()[-1].id))
        yield from page.jobs()


def test_records_without_messages_still_run(hurried, seen):
    _, site = hurried(lease_s=60.0, beat_s=0.5)
    jobs = [site.submit(f"unannounced-{n}", ring=False) for n in range(5)]
    site.start_worker(slots=5)
    done = [site.until(job_id, "succeeded") for job_id in jobs]
    assert [job.attempt for job in done] == [1] * 5
    seen("record without message, fake", f"{len(done)} of 5 ran")
