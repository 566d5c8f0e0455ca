"""Jobs on a real Redis with a real Celery worker and a child without torch."""

import subprocess
import sys

import pytest

from model_core.errors import RunExists

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(make_site, start_redis):
    """One worker with one slot, for all tests that leave it alive; Redis on a Unix socket, as embedded."""
    site = make_site(start_redis(unix=True).url)
    site.start_worker()
    return site


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


def test_child_sees_no_secret_of_the_worker(site, monkeypatch):
    site.until(site.submit("clean"), "succeeded")
    seen = site.events("clean")[0]["environment"]
    assert "MALLOC_TRIM_THRESHOLD_" in seen
    assert not [name for name in seen if name.startswith("HEADCOUNT_")]


def test_one_slot_runs_jobs_one_after_another_in_order(site):
    ids = [site.submit(f"ordered-{n}", step_s=0.05) for n in range(3)]
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

    with pytest.raises(RunExists) as refused:
        site.submit("foreign")
    assert refused.value.next_free == "foreign-2"

    assert (site.settings.layout.run("foreign") / "events.jsonl").read_bytes() == before


def test_worker_holds_no_torch():
    loaded = "import sys, worker.tasks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", loaded], check=True)
