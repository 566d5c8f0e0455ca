"""Jobs that depend on other jobs."""

import pytest

from model_core.errors import InvalidConfig
from tests.worker.harness import submit_job
from worker.jobs.schemas import JobError, Outcome

DONE = Outcome("succeeded", "finished")
FAILED = Outcome("failed", "nan", JobError(code="non_finite_loss", detail="nan"))


@pytest.fixture
def submit(store, make_spec):
    return lambda run, *awaited: submit_job(store, make_spec(run, depends_on=list(awaited)), fingerprint="f").job


def test_job_waits_until_all_it_depends_on_have_succeeded(store, submit, claim_one):
    first, second = submit("a"), submit("b")
    third = submit("c", first.id, second.id)
    assert (third.status, third.waiting_for, third.queue) == ("queued", (first.id, second.id), None)
    assert store.queue().waiting == 1

    store.finish(claim_one("1"), DONE)
    assert store.get(third.id).waiting_for == (second.id,)
    claim = claim_one("2")
    assert claim_one("3") is None
    store.finish(claim, DONE)

    assert store.get(third.id).waiting_for == ()
    assert claim_one("4").id == third.id
    assert store.detail(third.id).depends_on == (first.id, second.id)


@pytest.mark.parametrize("end", ["failed", "cancelled", "deleted"])
def test_lost_dependency_fails_the_whole_chain(store, submit, claim_one, end):
    first = submit("a")
    second = submit("b", first.id)
    third = submit("c", second.id)
    if end == "failed":
        store.finish(claim_one(), FAILED)
    else:
        store.request_action(first.id, "cancel")
    for job in (second, third):
        found = store.get(job.id)
        assert (found.status, found.error.code) == ("failed", "dependency_failed")
    assert first.id in store.get(second.id).error.detail


def test_paused_dependency_keeps_it_waiting(store, submit):
    first = submit("a")
    second = submit("b", first.id)
    store.request_action(first.id, "pause")
    assert store.get(second.id).status == "queued"


def test_retry_fails_again_until_what_it_waits_for_goes_on(store, submit, claim_one):
    first = submit("a")
    second = submit("b", first.id)
    store.finish(claim_one("1"), FAILED)
    again = store.retry(second.id).job
    assert (again.status, again.error.code) == ("failed", "dependency_failed")
    store.retry(first.id)
    assert store.retry(second.id).job.waiting_for == (first.id,)
    store.finish(claim_one("3"), DONE)
    assert claim_one("4").id == second.id


def test_retry_cannot_wait_for_what_is_gone(store, submit):
    first = submit("a")
    second = submit("b", first.id)
    store.request_action(first.id, "cancel")
    store.mark_deleted(first.id, with_artifacts=False)
    store.purge(first.id)
    again = store.retry(second.id).job
    assert (again.status, again.error.code) == ("failed", "dependency_failed")


def test_what_is_paused_while_it_waits_goes_on_waiting(store, submit, claim_one):
    first = submit("a")
    second = submit("b", first.id)
    store.request_action(second.id, "pause")
    assert store.request_action(second.id, "resume").job.waiting_for == (first.id,)
    store.request_action(second.id, "pause")
    store.finish(claim_one("1"), DONE)
    assert (store.get(second.id).status, store.get(second.id).waiting_for) == ("paused", ())
    assert store.request_action(second.id, "resume").job.queue.position == 1


def test_what_has_succeeded_is_not_waited_for(store, submit, claim_one):
    first = submit("a")
    store.finish(claim_one(), DONE)
    assert submit("b", first.id).waiting_for == ()


def test_what_has_failed_fails_a_new_job_too(store, submit):
    first = submit("a")
    store.request_action(first.id, "cancel")
    assert submit("b", first.id).error.code == "dependency_failed"


def test_unknown_dependency_is_refused(submit):
    with pytest.raises(InvalidConfig) as refused:
        submit("a", "job_" + "0" * 32)
    assert refused.value.problems[0].pointer == "/job/depends_on/0"


def test_long_chain_falls_at_once(store, submit):
    first = submit("a")
    last = first
    for number in range(300):
        last = submit(f"b{number}", last.id)
    store.request_action(first.id, "cancel")
    assert store.get(last.id).status == "failed"
