"""Faults of a job's process: it is killed, crashes, hangs, ignores signals, or leaves processes behind."""

import functools
import signal
import time

import psutil
import pytest

from tests.polling import eventually, seconds_until
from tests.process import is_over

pytestmark = pytest.mark.e2e


STALL_S = {"fake": 4.0, "real": 10.0}


@pytest.fixture(scope="module")
def site_of(make_site, start_redis):
    """One worker with one slot, which all these faults must leave alive, for either child."""

    @functools.cache
    def make(child):
        site = make_site(start_redis(unix=True).url, child=child, stop_grace_s=1.0)
        site.start_worker()
        return site

    return make


@pytest.fixture
def site(site_of):
    return site_of("fake")


@pytest.fixture(scope="module")
def impatient(make_site, start_redis):
    """A worker that takes a child that is silent for some seconds for one that hangs."""
    site = make_site(start_redis(unix=True).url, stall_s=STALL_S["fake"], stop_grace_s=1.0, crash_budget=1)
    site.start_worker()
    return site


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_killed_child_resumes_from_its_state(site_of, child, number, seen):
    site, run = site_of(child), f"killed-{number.name}"
    job_id = site.submit(run, steps=50, step_s=0.04)
    site.until_step(job_id, 7).send_signal(number)

    seconds = seconds_until(lambda: site.event_log(run).resumed)
    job = site.until(job_id, "succeeded")

    log = site.event_log(run)
    log.check(50)
    assert site.workers[0].poll() is None
    assert (job.attempt, log.resumed[0][0]) == (2, 2)
    assert number.name in job.history[2].reason
    seen(f"{number.name} of the child, {child}", f"resumed after {seconds:.1f} s from step {log.resumed[0][1]}")


@pytest.mark.slow
def test_trainer_killed_five_times_gives_the_same_bits(site_of, seen):
    site, long = site_of("real"), {"steps": 120, "step_s": 0.03}
    site.until(site.submit("straight", **long), "succeeded")
    job_id = site.submit("cut", **long)
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
    for blow, number in enumerate(signals):
        eventually(lambda blow=blow: _steps_after_beginning(site.event_log("cut"), blow) > 6)
        site.child_of(job_id).send_signal(number)

    job = site.until(job_id, "succeeded")

    killed, stopped = "the process was ended by SIGKILL", "the process stopped unasked (SIGTERM)"
    requeued = [change.reason for change in job.history if change.to == "queued"]
    assert requeued[1:] == [killed, stopped, killed, stopped, killed]
    log, straight = site.event_log("cut"), site.event_log("straight")
    log.check(120)
    assert len(log.resumed) == len(signals)
    assert log.bits() == straight.bits()
    assert log.bits("validation", "val_loss") == straight.bits("validation", "val_loss")
    seen("kill -9/TERM x5, real", f"0 bits differ, resumed at steps {[step for _, step in log.resumed]}")


def _steps_after_beginning(log, blow):
    """How many steps the attempt after so many blows has told."""
    attempts = log.attempts
    return len([e for e in log.of("step") if e["attempt"] == attempts[blow]]) if len(attempts) > blow else 0


def test_crashes_without_a_new_step_spend_the_budget(site):
    job = site.until(site.submit("dies"), "failed")
    assert (job.error.code, job.attempt) == ("crash_budget", 3)
    assert "SIGABRT" in job.history[-1].reason


@pytest.mark.slow
def test_trainer_that_never_comes_to_a_step_spends_the_budget(site_of, seen):
    site = site_of("real")
    job_id = site.submit("never", steps=10)
    for attempt in (1, 2, 3):
        eventually(lambda attempt=attempt: site.job(job_id).attempt == attempt)
        site.child_of(job_id).kill()

    job = site.until(job_id, "failed")

    assert (job.error.code, job.attempt) == ("crash_budget", 3)
    seen("no progress, real", f"given up after {job.attempt} attempts")


def test_silent_child_is_ended_and_resumed(impatient, seen):
    began = time.monotonic()
    job_id = impatient.submit("hangs-once", steps=10)

    job = impatient.until(job_id, "succeeded")

    log = impatient.event_log("hangs-once")
    log.check(10)
    assert (job.attempt, log.resumed, job.history[2].reason) == (2, [(2, 5)], "no event for 4 s")
    said = impatient.said_by_child(job_id)
    assert said.index("in train") < said.index("Fatal Python error: Aborted")  # asked first, then killed
    seen("child hangs, fake", f"from submit to success {time.monotonic() - began:.1f} s, 4 s of them silent")


@pytest.mark.slow
def test_child_that_stays_silent_fails_with_a_way_to_its_stacks(impatient):
    job = impatient.until(impatient.submit("hangs-always"), "failed")
    assert job.error.code == "stalled"
    assert f"GET /jobs/{job.id}/logs?source=process" in job.error.hint
    assert "in misbehave" in impatient.said_by_child(job.id)


@pytest.mark.slow
def test_stopped_trainer_says_where_it_is_and_is_resumed(hurried, seen):
    _, site = hurried(child="real", stall_s=STALL_S["real"])
    site.start_worker()
    job_id = site.submit("stopped", steps=100, step_s=0.03)
    site.until_step(job_id, 7).suspend()

    seconds = seconds_until(lambda: site.event_log("stopped").resumed)
    site.until(job_id, "succeeded")

    site.event_log("stopped").check(100)
    assert " in train\n" in site.said_by_child(job_id)  # in a step, or in what listens to it
    seen("child hangs, real", f"resumed {seconds:.1f} s after its last event, stall deadline {STALL_S['real']:g} s")


def test_child_that_ignores_sigterm_is_killed_after_the_grace(site, seen):
    job_id = site.submit("deaf", steps=10_000, step_s=0.02)
    process = site.until_step(job_id, 1)

    site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: site.job(job_id).status == "cancelled")

    assert is_over(process)
    seen("child ignores SIGTERM, fake", f"cancelled after {seconds:.1f} s, grace 1 s")


def test_killed_child_leaves_no_process_behind(site):
    job_id = site.submit("launches", steps=60, step_s=0.05)
    process = site.until_step(job_id, 1)
    rank = psutil.Process(int((site.settings.layout.run("launches") / "rank").read_text()))

    process.kill()

    eventually(lambda: site.job(job_id).attempt == 2)
    assert is_over(rank)  # though it was in a session of its own
    site.store.request_action(job_id, "cancel")


def test_lines_that_are_no_events_keep_nothing_back(site):
    job = site.until(site.submit("scribbles", steps=12), "succeeded")
    assert job.progress.step == 12
    assert [event["seq"] for event in site.store.events(job.id)] == list(range(1, 17))
