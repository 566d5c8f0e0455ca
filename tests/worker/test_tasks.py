"""Jobs on a real Redis, a real Celery worker and a real child that holds no torch."""

import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(make_site, start_redis):
    """One worker with one slot, for all tests that leave it alive; Redis on a Unix socket, as embedded."""
    site = make_site(start_redis(unix=True).url)
    site.start_worker()
    return site


@pytest.fixture
def hurried(make_site, start_redis):
    """A Redis of the test's own, and leases that run out soon."""

    def make(**settings):
        server = start_redis()
        return server, make_site(server.url, **{"lease_s": 3.0, "beat_s": 0.5, "janitor_s": 0.5, **settings})

    return make


def test_submitted_job_runs_to_success(site):
    job = site.until(site.submit("plain"), "succeeded")

    assert [(change.from_, change.to) for change in job.history] == [
        (None, "queued"),
        ("queued", "running"),
        ("running", "succeeded"),
    ]
    assert (job.progress.step, job.progress.max_steps, job.attempt) == (3, 3, 1)
    assert (job.worker.device, job.terminal, job.error) == ("cpu", True, None)
    assert [event["seq"] for event in site.store.events(job.id)] == [e["seq"] for e in site.events("plain")]


def test_record_whose_message_was_lost_still_runs(site):
    assert site.until(site.submit("unannounced", ring=False), "succeeded", timeout_s=8).attempt == 1


def test_child_sees_no_secret_of_the_worker(site, monkeypatch):
    site.until(site.submit("clean"), "succeeded")
    seen = site.events("clean")[0]["environment"]
    assert "MALLOC_TRIM_THRESHOLD_" in seen
    assert not [name for name in seen if name.startswith("HEADCOUNT_")]


def test_one_slot_runs_jobs_one_after_another_in_order(site):
    ids = [site.submit(f"ordered-{n}", step_s=0.05) for n in range(3)]
    assert [site.job(job_id).queue.jobs_ahead for job_id in ids if site.job(job_id).queue] in ([0, 1], [0, 1, 2])

    jobs = [site.until(job_id, "succeeded") for job_id in ids]

    times = [time for job in jobs for time in (job.started_at, job.finished_at)]
    assert times == sorted(times)


def test_failure_keeps_its_code(site):
    job = site.until(site.submit("refuses"), "failed")
    assert (job.error.code, job.error.detail) == ("invalid_data", "the numbers are wrong")
    assert job.attempt == 1


def test_run_that_is_not_the_jobs_own_is_left_alone(site):
    job_id = site.submit("foreign", steps=1)
    site.until(job_id, "succeeded")
    before = (site.settings.layout.run("foreign") / "events.jsonl").read_bytes()

    with pytest.raises(Exception, match="the next free name is 'foreign-2'"):
        site.submit("foreign")

    assert (site.settings.layout.run("foreign") / "events.jsonl").read_bytes() == before


def test_crashes_without_a_new_step_spend_the_budget(site):
    job = site.until(site.submit("dies"), "failed")
    assert (job.error.code, job.attempt) == ("crash_budget", 3)
    assert "SIGABRT" in job.history[-1].reason


def test_killed_child_resumes_from_its_state(site):
    job_id = site.submit("killed", steps=30, step_s=0.05)
    psutil.Process(site.until_step(job_id, 7)).kill()

    job = site.until(job_id, "succeeded")

    resumed = next(event for event in site.events("killed") if event["type"] == "resumed")
    assert (job.attempt, resumed["attempt"]) == (2, 2)
    assert resumed["step"] >= 5
    assert min(e["step"] for e in site.events("killed") if e["attempt"] == 2 and e["type"] == "step") > resumed["step"]


def test_cancelled_job_says_so_when_its_process_is_gone_and_frees_the_slot(site):
    running, queued = site.submit("cancelled", steps=1000, step_s=0.05), site.submit("never")
    pid = site.until_step(running, 1)

    assert site.store.cancel(queued).job.status == "cancelled"
    assert site.store.cancel(running).job.status == "stopping"
    job = site.until(running, "cancelled")

    assert not psutil.pid_exists(pid)
    assert (job.terminal, job.allowed_actions) == (True, ("resume", "delete"))
    assert (site.settings.layout.run("cancelled") / "state.json").exists()
    assert site.until(site.submit("after"), "succeeded").attempt == 1
    assert site.job(queued).attempt == 0


def test_worker_holds_no_torch():
    loaded = "import sys, worker.tasks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", loaded], check=True)


def test_terminated_worker_saves_requeues_and_leaves(hurried):
    _, site = hurried()
    worker = site.start_worker()
    job_id = site.submit("moved", steps=40, step_s=0.05)
    pid = site.until_step(job_id, 2)

    worker.terminate()
    worker.wait(timeout=15)

    assert not psutil.pid_exists(pid)
    assert site.job(job_id).status == "queued"
    assert (site.settings.layout.run("moved") / "state.json").exists()
    site.start_worker()
    assert site.until(job_id, "succeeded").attempt == 2


def test_killed_worker_loses_its_job_to_another(hurried):
    _, site = hurried()
    worker = site.start_worker()
    job_id = site.submit("orphan", steps=60, step_s=0.05)
    pid = site.until_step(job_id, 3)

    worker.kill()
    worker.wait()
    site.start_worker()
    job = site.until(job_id, "succeeded")

    assert not psutil.pid_exists(pid)
    steps = [event["step"] for event in site.events("orphan") if event["type"] == "step"]
    assert steps == list(range(1, 61))  # saved at the end of its pipe: none twice, none missing
    assert "the worker was lost" in [change.reason for change in job.history]


def test_redis_stopped_for_a_while_does_not_disturb_the_child(hurried):
    server, site = hurried(lease_s=60.0, beat_s=0.5)
    site.start_worker()
    job_id = site.submit("patient", steps=60, step_s=0.05)
    site.until_step(job_id, 3)

    server.kill()
    site.eventually(lambda: len(site.events("patient")) > 40)
    server.start()
    job = site.until(job_id, "succeeded")

    assert job.attempt == 1
    assert job.progress.step == 60
    assert len(site.store.events(job_id, limit=1000)) == len(site.events("patient"))


@pytest.mark.slow
def test_frozen_redis_costs_no_attempt(hurried):
    server, site = hurried()
    site.start_worker()
    site.start_worker()
    job_id = site.submit("frozen", steps=200, step_s=0.05)
    site.until_step(job_id, 3)

    server.send(signal.SIGSTOP)
    site.eventually(lambda: len(site.events("frozen")) > 100)
    server.send(signal.SIGCONT)

    assert site.until(job_id, "succeeded").attempt == 1


@pytest.mark.slow
def test_frozen_worker_never_makes_two_trainers(hurried):
    _, site = hurried()
    frozen = site.start_worker()
    job_id = site.submit("frozen-worker", steps=120, step_s=0.05)
    site.until_step(job_id, 3)
    frozen.send_signal(signal.SIGSTOP)
    site.start_worker()
    site.eventually(lambda: site.job(job_id).attempt > 1)

    frozen.send_signal(signal.SIGCONT)
    site.until(job_id, "succeeded")

    steps = [event["step"] for event in site.events("frozen-worker") if event["type"] == "step"]
    assert steps == list(range(1, 121))


@pytest.mark.slow
def test_silent_child_is_ended_and_its_stacks_are_kept(hurried):
    _, site = hurried(stall_s=2.0, stop_grace_s=1.0, crash_budget=1)
    site.start_worker()
    job = site.until(site.submit("hangs"), "failed")
    assert job.error.code == "stalled"
    assert "Fatal Python error" in (site.settings.layout.jobs / job.id / "child.log").read_text()
