"""Redis loses its data while jobs of every status exist: they are rebuilt from disk and resumed."""

import shutil

import pytest

from tests.polling import eventually
from worker.jobs import commands
from worker.jobs.recovery import jobs_on_disk, rebuild, restore

pytestmark = pytest.mark.e2e

EQUAL = {
    "id", "kind", "run", "status", "terminal", "allowed_actions", "attempt", "created_at", "progress", "priority",
    "metadata", "depends_on", "gpus",
}  # fmt: skip


@pytest.fixture
def server(start_redis):
    return start_redis()


@pytest.fixture
def site(make_site, server):
    """One worker with two slots."""
    site = make_site(server.url, lease_s=3.0, beat_s=0.5, janitor_s=0.5)
    site.start_worker(slots=2)
    return site


def lose(server) -> None:
    """End Redis and remove what it kept."""
    server.kill()
    for kept in (*server.directory.glob("appendonly*"), *server.directory.glob("dump*")):
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    server.start()


def bring_back(site) -> dict[str, bool]:
    found, bad = jobs_on_disk(site.settings.layout)
    assert bad == []
    return {job.id: site.store.run(restore(rebuild(site.settings.layout, job))) for job in found}


def test_jobs_come_back_as_they_were_and_a_paused_one_runs_to_its_end(site, server):
    asked = {"priority": 5, "metadata": {"who": "me"}}
    jobs = {
        "succeeded": site.submit("done", **asked),
        "failed": site.submit("refuses"),
        "paused": site.submit("halted", steps=50, step_s=0.05, **asked),
        "cancelled": site.submit("dropped", steps=1000, step_s=0.05),
    }
    site.until_step(jobs["paused"], 7)
    site.store.request_action(jobs["paused"], "pause")
    site.until_step(jobs["cancelled"], 3)
    site.store.request_action(jobs["cancelled"], "cancel")
    before = {job_id: [site.until(job_id, status), site.store.detail(job_id)][1] for status, job_id in jobs.items()}

    lose(server)
    assert site.store.run(commands.page()).jobs() == []
    assert bring_back(site) == dict.fromkeys(jobs.values(), True)
    after = {job_id: site.store.detail(job_id) for job_id in jobs.values()}

    assert [kept.model_dump(include=EQUAL) for kept in after.values()] == [
        was.model_dump(include=EQUAL) for was in before.values()
    ]
    assert after[jobs["failed"]].error == before[jobs["failed"]].error
    assert [job.id for job in site.store.run(commands.page()).jobs()] == sorted(
        before, key=lambda job_id: before[job_id].created_at, reverse=True
    )
    assert site.store.request_action(jobs["paused"], "resume").is_new
    site.until(jobs["paused"], "succeeded")
    events = site.events("halted")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["step"] for event in events if event["type"] == "step"] == list(range(1, 51))
    assert site.store.events(jobs["paused"], after[jobs["paused"]].progress.step)[-1] == events[-1]


@pytest.mark.slow
def test_a_job_that_ran_is_paused_once_its_process_is_gone(site, server):
    job_id = site.submit("running", steps=100, step_s=0.05)
    child = site.until_step(job_id, 3)

    lose(server)
    eventually(lambda: not child.is_running())  # its worker no longer holds it
    assert bring_back(site) == {job_id: True}

    job = site.job(job_id)
    assert (job.status, job.attempt) == ("paused", 1)
    site.store.request_action(job_id, "resume")
    assert site.until(job_id, "succeeded").attempt == 2
    steps = [event["step"] for event in site.events("running") if event["type"] == "step"]
    assert steps == list(range(1, 101))
