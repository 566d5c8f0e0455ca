"""The actions that a client may request, in every status of a job."""

import pytest

from model_core.errors import InvalidParameter, RunBusy, RunExists
from model_core.storage.events import EventWriter
from model_core.storage.run import Run
from tests.worker.harness import submit_job
from worker.jobs import commands
from worker.jobs.errors import ActionNotAllowed, IdempotencyConflict, JobNotFound, PreconditionFailed
from worker.jobs.schemas import JobError, Outcome
from worker.jobs.states import ACTIONS, STATUSES

FAILURE = JobError(code="non_finite_loss", detail="the loss is nan")
WISHES = [action for action in ACTIONS if action != "delete"]


@pytest.fixture
def submit(store, make_spec):
    return lambda run, **options: submit_job(store, make_spec(run, **options), fingerprint="f").job


@pytest.fixture
def job_in(store, submit, claim_one):
    """A job in a given state, brought there as it happens in life."""

    def ended(result):
        return lambda job: store.finish(claim_one(job.id), Outcome(result, result, FAILURE))

    def stopping(job):
        claim_one(job.id)
        store.request_action(job.id, "cancel")

    ways = {
        "queued": lambda job: None,
        "running": lambda job: claim_one(job.id),
        "stopping": stopping,
        "paused": lambda job: store.request_action(job.id, "pause"),
        "succeeded": ended("succeeded"),
        "failed": ended("failed"),
        "cancelled": lambda job: store.request_action(job.id, "cancel"),
    }

    def make(status, run="one"):
        job = submit(run)
        ways[status](job)
        assert store.get(job.id).status == status
        return job.id

    return make


def made(settings, job, *, steps=0):
    """The run of a job, with some events."""
    run = Run.create(settings.layout.run(job.run), make_config(job.run), job.id)
    writer = EventWriter(run.events, 1)
    for step in range(steps):
        writer.append("step", step=step + 1, loss=1.0)
    writer.close()
    return run


def make_config(run):
    from model_core.config_loader import parse_config

    return parse_config({"experiment_name": run}).config


CELLS = [(action, status, ACTIONS[action].get(status)) for action in WISHES for status in STATUSES]


@pytest.mark.parametrize(
    ("action", "status", "to"), [cell for cell in CELLS if cell[2] and cell[:2] != ("pause", "stopping")]
)
def test_allowed_action_leads_where_the_table_says_and_may_be_repeated(store, job_in, action, status, to):
    job_id = job_in(status)
    first, again = store.request_action(job_id, action), store.request_action(job_id, action)
    assert (first.job.status, first.is_new) == (to, status != to)
    assert (again.job.status, again.is_new) == (to, False)


@pytest.mark.parametrize(("action", "status"), [cell[:2] for cell in CELLS if not cell[2]])
def test_impossible_action_is_refused_with_the_possible_ones(store, job_in, action, status):
    job_id = job_in(status)
    with pytest.raises(ActionNotAllowed) as refused:
        store.request_action(job_id, action)
    assert (refused.value.status, refused.value.action) == (status, action)
    assert refused.value.allowed_actions == store.get(job_id).allowed_actions


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_is_over_can_be_deleted(store, job_in, status):
    job_id = job_in(status)
    if status in ACTIONS["delete"]:
        store.mark_deleted(job_id, with_artifacts=False)
        store.mark_deleted(job_id, with_artifacts=False)
        store.purge(job_id)
        with pytest.raises(JobNotFound):
            store.get(job_id)
    else:
        with pytest.raises(ActionNotAllowed):
            store.mark_deleted(job_id, with_artifacts=False)


def test_cancel_replaces_a_requested_pause(store, submit, claim_one):
    job = submit("one")
    claim = claim_one()
    assert store.request_action(job.id, "pause").job.status == "stopping"
    with pytest.raises(ActionNotAllowed):
        store.request_action(job.id, "resume")
    assert store.request_action(job.id, "cancel").is_new
    with pytest.raises(ActionNotAllowed):
        store.request_action(job.id, "pause")
    assert store.finish(claim, Outcome("stopped", "cancel")) == "cancelled"


def test_paused_job_goes_on_with_the_next_attempt(store, submit, claim_one):
    job = submit("one")
    claim = claim_one("a")
    store.request_action(job.id, "pause")
    assert store.finish(claim, Outcome("stopped", "pause")) == "paused"
    assert claim_one("b") is None
    store.request_action(job.id, "resume")
    assert claim_one("c").attempt == 2
    first, second = store.detail(job.id).attempts
    assert (first.attempt, first.result, first.reason, first.worker.id) == (1, "paused", "pause", "w1")
    assert (second.attempt, second.result, second.ended_at) == (2, None, None)


def test_resumption_names_where_it_went_on(store, submit, claim_one):
    job = submit("one")
    resumed = {"seq": 1, "type": "resumed", "attempt": 1, "file": "model_00005.pt", "step": 5}
    claim = claim_one()
    store.mirror(claim, [resumed])
    assert store.detail(job.id).attempts[0].resumed_from.step == 5
    store.finish(claim, Outcome("succeeded", "finished"))
    assert store.detail(job.id).attempts[0].resumed_from.file == "model_00005.pt"


def test_retry_gives_a_new_crash_budget(store, submit, claim_one):
    job = submit("one")
    crash = Outcome("crashed", "ended by SIGKILL")
    assert [store.finish(claim_one(owner), crash) for owner in "abc"] == ["queued", "queued", "failed"]
    assert store.retry(job.id).job.status == "queued"
    assert [store.finish(claim_one(owner), crash) for owner in "defg"[:3]] == ["queued", "queued", "failed"]


def test_retry_from_scratch_takes_a_new_run_whose_events_follow_on(store, settings, submit, claim_one):
    job = submit("one")
    store.finish(claim_one("a"), Outcome("failed", "nan", FAILURE))
    made(settings, job, steps=3)

    again = store.retry(job.id, scratch=True).job

    assert (again.run, again.status, again.error, again.progress.step) == ("one-2", "queued", None, 0)
    assert store.retry(job.id, scratch=True).job.run == "one-2"  # repeated, it changes nothing
    claim = claim_one("b")
    assert (claim.run, claim.attempt, claim.seq_after) == ("one-2", 2, 3)
    assert [attempt.run for attempt in store.detail(job.id).attempts] == ["one", "one-2"]
    assert [found.id for found in store.run(commands.page(run="one-2")).jobs()] == [job.id]
    assert store.run(commands.page(run="one")).jobs() == []


def test_resumed_job_finds_its_name_taken(store, settings, submit):
    job = submit("one")
    store.request_action(job.id, "cancel")
    made(settings, submit("two")).path.rename(settings.layout.run("one"))
    with pytest.raises(RunExists) as refused:
        store.request_action(job.id, "resume")
    assert refused.value.next_free == "one-2"


def test_priority_moves_a_queued_job_at_once(store, submit, claim_one):
    submit("first")
    late = submit("late")
    assert store.update(late.id, priority=3).queue.position == 1
    assert claim_one().run == "late"


def test_metadata_is_merged_and_revisions_are_watched(store, submit):
    job = submit("one", metadata={"team": "a", "note": "x"})
    amended = store.update(job.id, metadata={"note": None, "seed": "7"}, expected=job.revision)
    assert (amended.metadata, amended.revision) == ({"team": "a", "seed": "7"}, job.revision + 1)
    again = store.update(job.id, metadata={"note": None, "seed": "7"}, expected=job.revision)  # its reply was lost
    assert again.revision == amended.revision
    with pytest.raises(PreconditionFailed) as refused:
        store.update(job.id, priority=1, expected=job.revision)
    assert refused.value.revision == amended.revision
    with pytest.raises(InvalidParameter, match="18"):
        store.update(job.id, metadata={f"k{n}": "v" for n in range(16)})


def test_progress_is_no_revision(store, submit, claim_one):
    submit("one")
    claim = claim_one()
    before = store.get(claim.id).revision
    store.mirror(claim, [{"seq": 1, "type": "step", "step": 1}])
    assert store.get(claim.id).revision == before


def test_deleted_job_leaves_nothing_and_its_key_is_new_again(store, make_spec, redis_url, connected):
    job = submit_job(store, make_spec("one"), key="k", fingerprint="f").job
    store.request_action(job.id, "cancel")
    store.mark_deleted(job.id, with_artifacts=True)
    with pytest.raises(ActionNotAllowed):
        store.request_action(job.id, "resume")  # not while it is being deleted
    store.purge(job.id)
    left = connected(redis_url, for_api=False).keys("headcount:*")
    assert sorted(left) == ["headcount:changes", "headcount:seq"]
    assert submit_job(store, make_spec("other"), key="k", fingerprint="g").created


def test_run_that_another_job_uses_is_not_deleted(store, submit, make_spec, claim_one):
    job = submit("one")
    store.finish(claim_one(), Outcome("succeeded", "finished"))
    from worker.jobs.spec import parse_spec

    test = parse_spec({"experiment_name": "one", "execution": {"train": False, "test": True}})
    submit_job(store, test, fingerprint="g")
    with pytest.raises(RunBusy):
        store.mark_deleted(job.id, with_artifacts=True)
    assert store.mark_deleted(job.id, with_artifacts=False).id == job.id
    with pytest.raises(IdempotencyConflict):
        (
            submit_job(store, make_spec("x"), key="k", fingerprint="1"),
            submit_job(store, make_spec("x"), key="k", fingerprint="2"),
        )
