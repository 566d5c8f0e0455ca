"""Faults of a job of several processes: it ends as a whole, and resumes."""

import functools

import psutil
import pytest

from tests.polling import eventually, seconds_until
from tests.process import is_over

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TWO = {"resources": {"processes": 2}}
TRAINED = {"model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300, "block_size": 32, "dropout": 0.1}}
LENGTH = {  # some seconds: whoever is to be killed is still there when a busy machine has shown that it trains
    "fake": {"steps": 100, "step_s": 0.05},
    "real": {"steps": 200, "step_s": 0.03, "changes": TRAINED},
}
LONG_S = 240.0  # three processes that load torch on two cores


@pytest.fixture(scope="module")
def site_of(make_site, start_redis):
    """One worker with one slot for either child, and the losses of a run that nobody disturbed."""

    @functools.cache
    def make(child):
        site = make_site(start_redis(unix=True).url, child=child)
        site.start_worker()
        site.until(site.submit("straight", **TWO, **LENGTH[child]), "succeeded", LONG_S)
        return site

    return make


def family_of(site, job_id):
    """The launcher of a job that trains, and both processes that it started, in the order of their ranks."""
    eventually(lambda: site.job(job_id).progress.step >= 7, LONG_S)
    launcher = site.child_of(job_id)
    return [launcher, *sorted(launcher.children(), key=lambda process: process.environ()["RANK"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("child", "victim"),
    [
        ("fake", 1),
        ("real", 0),
        ("real", 1),
        ("real", None),  # the launcher
    ],
)
def test_job_of_two_processes_goes_on_when_one_is_killed(site_of, child, victim, seen):
    site, run = site_of(child), f"killed-{victim}"
    job_id = site.submit(run, **TWO, **LENGTH[child])
    family = family_of(site, job_id)

    family[0 if victim is None else victim + 1].kill()
    seconds = seconds_until(lambda: site.event_log(run).resumed, LONG_S)
    left = [process for process in family if not is_over(process)]
    job = site.until(job_id, "succeeded", LONG_S)

    site.event_log(run).check(LENGTH[child]["steps"])
    assert (job.attempt, left) == (2, [])
    assert site.event_log(run).bits() == site.event_log("straight").bits()
    seen(f"kill -9 of {victim}, two processes, {child}", f"0 bits differ, resumed after {seconds:.1f} s")


def test_job_of_two_processes_stops_whole(site_of, child, seen):
    site, run = site_of(child), "cancelled"
    job_id = site.submit(run, **TWO, steps=10_000, step_s=0.02)
    family = family_of(site, job_id)

    site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: site.job(job_id).status == "cancelled", LONG_S)

    assert len(family) == 3
    assert [process for process in family if not is_over(process)] == []
    assert site.children() == []
    log = site.event_log(run)
    assert log.of("checkpoint")[-1]["step"] == log.steps[-1]
    seen(f"cancel, two processes, {child}", f"saved and gone after {seconds:.1f} s")


@pytest.mark.slow
def test_processes_of_a_killed_worker_save_and_leave(hurried):
    _, site = hurried(child="real")
    worker = site.start_worker()
    job_id = site.submit("orphans", **TWO, steps=10_000, step_s=0.02)
    family = family_of(site, job_id)

    worker.kill()

    assert psutil.wait_procs(family, timeout=LONG_S / 4)[1] == []
    log = site.event_log("orphans")
    assert log.of("checkpoint")[-1]["step"] == log.steps[-1]
