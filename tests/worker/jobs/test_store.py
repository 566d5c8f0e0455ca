"""Transitions of the job store on a real Redis."""

import time

import pytest

from model_core.errors import RunExists
from tests.polling import eventually
from tests.worker.harness import submit_job
from worker.jobs import commands
from worker.jobs.errors import ActionNotAllowed, IdempotencyConflict, JobNotFound, QueueFull, QueueUnavailable
from worker.jobs.redis_client import PREFIX, connect
from worker.jobs.schemas import JobError, Outcome, Progress
from worker.jobs.settings import JobSettings
from worker.jobs.store import CHANGES_KEY
from worker.jobs.worker_store import WorkerStore

CRASH = Outcome("crashed", "the process was ended by SIGKILL")


@pytest.fixture
def submit(store, make_spec):
    return lambda run, *, key=None, fingerprint="f", **options: submit_job(
        store, make_spec(run, **options), key=key, fingerprint=fingerprint
    )


def test_new_job_is_queued_first_in_line(store, submit):
    submission = submit("one")
    job = submission.job
    assert submission.created
    assert (job.status, job.kind, job.run, job.attempt) == ("queued", "train", "one", 0)
    assert (job.queue.position, job.queue.jobs_ahead) == (1, 0)
    assert job.allowed_actions == ("cancel", "pause")
    assert job.created_at.endswith("Z")
    assert job.history[0].model_dump()["from"] is None


def test_same_key_and_body_is_the_same_job_even_when_its_run_exists(submit, settings):
    first = submit("one", key="k")
    settings.layout.run("one").mkdir(parents=True)
    again = submit("one", key="k")
    assert (again.job.id, again.created) == (first.job.id, False)


def test_same_key_with_another_body_is_refused(submit):
    first = submit("one", key="k")
    with pytest.raises(IdempotencyConflict) as refused:
        submit("two", key="k", fingerprint="other")
    assert refused.value.job_id == first.job.id


def test_name_of_a_job_that_is_not_over_is_taken(submit, settings):
    submit("one")
    settings.layout.run("one-2").mkdir(parents=True)
    with pytest.raises(RunExists) as refused:
        submit("one")
    assert refused.value.next_free == "one-3"


def test_name_is_free_again_when_the_job_never_ran(store, submit):
    store.request_action(submit("one").job.id, "cancel")
    assert submit("one").created


def test_run_on_disk_is_taken(submit, settings):
    settings.layout.run("one").mkdir(parents=True)
    with pytest.raises(RunExists) as refused:
        submit("one")
    assert refused.value.next_free == "one-2"


def test_full_queue_refuses(redis_url, tmp_path, make_spec, connected):
    settings = JobSettings(data=tmp_path, redis_url=redis_url, max_queued=1)
    store = WorkerStore(connected(redis_url, for_api=True), settings)
    submit_job(store, make_spec("one"), fingerprint="f")
    with pytest.raises(QueueFull, match="1"):
        submit_job(store, make_spec("two"), fingerprint="f")


def test_unknown_job_is_not_found(store):
    with pytest.raises(JobNotFound, match="job_none"):
        store.get("job_none")
    with pytest.raises(JobNotFound):
        store.request_action("job_none", "cancel")


def test_oldest_of_the_highest_priority_runs_first(submit, claim_one):
    submit("old"), submit("older-but-urgent", priority=5), submit("urgent", priority=5)
    assert [claim_one(owner).run for owner in "abc"] == ["older-but-urgent", "urgent", "old"]
    assert claim_one("d") is None


def test_repeated_claim_gets_the_same_job(submit, claim_one):
    submit("one"), submit("two")
    assert claim_one("a") == claim_one("a")


def test_claim_takes_what_fits(submit, claim_one):
    submit("gpu", resources={"gpus": 1}), submit("any"), submit("cpu", resources={"gpus": 0})
    assert claim_one("a").run == "any"
    assert claim_one("b", gpus=1).run == "cpu"
    assert claim_one("c", gpus=1, idle=("GPU-a",)).devices == ("GPU-a",)


def test_claim_carries_the_configuration(submit, claim_one, make_spec):
    from model_core.config_loader import parse_config

    submit("one", steps=7)
    assert parse_config(claim_one().config).config == make_spec("one", steps=7).config


def test_running_job_stops_before_it_is_cancelled(store, submit, claim_one):
    job_id = submit("one").job.id
    claim = claim_one()
    assert store.heartbeat(claim) == "run"
    assert store.request_action(job_id, "cancel").job.status == "stopping"
    assert store.request_action(job_id, "cancel").job.status == "stopping"
    assert store.mirror(claim, []) == "cancel"
    assert store.finish(claim, Outcome("stopped", "cancel")) == "cancelled"
    assert store.request_action(job_id, "cancel").job.status == "cancelled"


def test_what_is_over_cannot_be_cancelled(store, submit, claim_one):
    job_id = submit("one").job.id
    store.finish(claim_one(), Outcome("succeeded", "finished"))
    with pytest.raises(ActionNotAllowed) as refused:
        store.request_action(job_id, "cancel")
    assert (refused.value.status, refused.value.action) == ("succeeded", "cancel")


def test_finish_may_be_repeated(store, submit, claim_one):
    submit("one")
    claim = claim_one()
    assert [store.finish(claim, Outcome("stopped", "worker stopping")) for _ in range(2)] == ["queued", "queued"]
    assert claim_one("b").attempt == 2
    store.finish(claim, Outcome("succeeded", "finished"))
    assert store.get(claim.id).status == "running"


def test_failure_is_kept(store, submit, claim_one):
    job_id = submit("one").job.id
    error = JobError(code="non_finite_loss", detail="the loss is nan at step 3", step=3, hint="lower it")
    store.finish(claim_one(), Outcome("failed", error.detail, error))
    assert store.get(job_id).error == error


def test_only_crashes_without_a_new_step_count(store, submit, claim_one):
    job_id = submit("one").job.id
    store.finish(claim_one("a"), CRASH)
    progressing = claim_one("b")
    store.mirror(progressing, [{"seq": 1, "type": "step", "step": 4}], Progress(step=4))
    statuses = [store.finish(progressing, CRASH), *(store.finish(claim_one(owner), CRASH) for owner in "cde")]
    assert statuses == ["queued", "queued", "queued", "failed"]
    assert store.get(job_id).error.code == "crash_budget"


def test_busy_job_waits_a_moment(store, submit, claim_one):
    submit("one")
    assert store.finish(claim_one("a"), Outcome("busy", "another process holds the run")) == "queued"
    assert claim_one("b") is None
    assert eventually(lambda: claim_one("c"))


def test_events_reported_twice_are_kept_once(store, submit, claim_one):
    job_id = submit("one").job.id
    claim = claim_one()
    events = [{"seq": n, "type": "step", "step": n, "loss": 0.1 + n} for n in (1, 2, 3)]
    store.mirror(claim, events[:2], Progress(step=2, loss=2.1))
    store.mirror(claim, events, Progress(step=3, loss=3.1))
    assert store.events(job_id) == events
    assert store.events(job_id, after=1, limit=1) == events[1:2]
    assert store.get(job_id).progress == Progress(step=3, loss=3.1)


def test_every_change_is_announced(store, submit, claim_one, redis_url):
    job_id = submit("one").job.id
    store.mirror(claim_one(), [{"seq": 1, "type": "start"}])
    with connect(redis_url, for_api=True) as client:
        changes = [(fields["job"], fields.get("to")) for _, fields in client.xrange(CHANGES_KEY)]
    assert changes == [(job_id, "queued"), (job_id, "running"), (job_id, None)]


def test_pages_are_newest_first_and_filtered(store, submit, claim_one):
    ids = [submit(f"run-{n}").job.id for n in range(5)][::-1]
    claim_one()
    first = store.run(commands.page(limit=2))
    rest = store.run(commands.page(after=first.jobs()[-1].id, limit=10))
    assert ([job.id for job in (*first.jobs(), *rest.jobs())], first.has_more, rest.has_more) == (ids, True, False)
    assert [job.run for job in store.run(commands.page(status="running", kind="train")).jobs()] == ["run-0"]
    assert store.run(commands.page(run="run-3", status="running")).jobs() == []
    with pytest.raises(JobNotFound):
        store.run(commands.page(after="job_none"))


def test_a_job_of_an_unknown_kind_is_listed_cancelled_and_deleted_like_others(store, submit, claim_one):
    ids = [submit(run).job.id for run in ("one", "two")]
    store._redis.hset(f"{PREFIX}job:{ids[0]}", "kind", "distill")
    assert [job.kind for job in store.run(commands.page()).jobs()] == ["train", "distill"]
    assert claim_one().kind == "distill"
    assert store.detail(ids[0]).attempts[0].run == "one"
    store.request_action(ids[0], "cancel")
    store.finish(claim_one(), Outcome("stopped", "cancel"))
    store.mark_deleted(ids[0], with_artifacts=True)
    store.purge(ids[0])
    assert [job.id for job in store.run(commands.page()).jobs()] == ids[1:]
    assert submit("one").created


@pytest.mark.alone
def test_absent_redis_is_reported_at_once(tmp_path, make_spec, connected):
    url = f"unix://{tmp_path}/nothing.sock?db=0"
    store = WorkerStore(connected(url, for_api=True), JobSettings(data=tmp_path, redis_url=url))
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        submit_job(store, make_spec("one"), fingerprint="f")
    assert time.monotonic() - began < 1.5


def test_lost_job_is_reaped_and_its_old_owner_fenced(aged_redis_url, tmp_path, make_spec, claim_one, connected):
    quick = JobSettings(data=tmp_path, redis_url=aged_redis_url, lease_s=0.2, beat_s=0.1)
    store = WorkerStore(connected(aged_redis_url, for_api=False), quick)
    job_id = submit_job(store, make_spec("one"), fingerprint="f").job.id
    claim = claim_one()
    store.heartbeat(claim)  # renewed for the short lease
    assert store.reap() == []
    assert eventually(store.reap) == [job_id]
    assert (store.get(job_id).status, store.heartbeat(claim)) == ("queued", "fenced")


def test_a_late_heartbeat_renews_a_job_that_was_not_reaped(aged_redis_url, tmp_path, make_spec, claim_one, connected):
    quick = JobSettings(data=tmp_path, redis_url=aged_redis_url, lease_s=0.1, beat_s=0.05)
    store = WorkerStore(connected(aged_redis_url, for_api=False), quick)
    submit_job(store, make_spec("one"), fingerprint="f")
    claim = claim_one()
    store.heartbeat(claim)
    time.sleep(0.15)  # the lease runs out, and nobody looks
    assert store.heartbeat(claim) == "run"
    assert store.reap() == []


def test_nothing_is_reaped_while_redis_is_young(start_redis, tmp_path, make_spec, claim_one, connected):
    server = start_redis()
    long = JobSettings(data=tmp_path, redis_url=server.url, lease_s=3600, beat_s=1)
    client = connected(server.url, for_api=False)
    store = WorkerStore(client, long)
    client.zadd("headcount:leases", {submit_job(store, make_spec("one"), fingerprint="f").job.id: 1})
    assert store.reap() == []
