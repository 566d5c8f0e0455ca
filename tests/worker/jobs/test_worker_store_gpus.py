"""Assignment of GPUs to jobs."""

import pytest

from tests.worker.harness import submit_job
from worker.jobs.schemas import Outcome

ALL = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


@pytest.fixture
def submit(store, make_spec):
    return lambda run, gpus, **job: (
        submit_job(store, make_spec(run, resources={"gpus": gpus}, **job), fingerprint="f").job
    )


def end(store, claim):
    store.finish(claim, Outcome("succeeded", "finished"))


def test_job_gets_as_many_as_it_asks_for(submit, claim_one):
    submit("two", 2)
    assert claim_one(idle=ALL, gpus=4).devices == ALL[:2]


def test_two_workers_of_a_host_never_share_one(store, submit, claim_one):
    submit("x", 1), submit("y", 1), submit("z", 1)
    first = claim_one("1", worker="w1", idle=ALL[:2], gpus=2)
    second = claim_one("2", worker="w2", idle=ALL[:2], gpus=2)
    assert {*first.devices, *second.devices} == set(ALL[:2])
    assert claim_one("3", worker="w2", idle=ALL[:2], gpus=2) is None
    end(store, first)
    assert claim_one("4", worker="w2", idle=ALL[:2], gpus=2).devices == first.devices


def test_large_job_is_not_starved_by_small_ones(store, submit, claim_one):
    submit("small-1", 1)
    running = claim_one("1", idle=ALL[:2], gpus=2)
    submit("large", 2), submit("small-2", 1), submit("cpu", 0)
    idle = tuple(gpu for gpu in ALL[:2] if gpu not in running.devices)
    assert claim_one("2", idle=idle, gpus=2).run == "cpu"
    assert claim_one("3", idle=idle, gpus=2) is None  # the free one is kept
    assert (
        claim_one("4", worker="w2", idle=("GPU-x",), gpus=1).run == "small-2"
    )  # where it could never run, it keeps nothing
    end(store, running)
    assert claim_one("5", idle=ALL[:2], gpus=2).run == "large"


def test_worker_of_the_same_host_takes_nothing_that_is_kept(store, submit, claim_one):
    submit("small-1", 1)
    running = claim_one("1", worker="w1", idle=ALL[:2], gpus=2)
    large = submit("large", 2)
    submit("small-2", 1)
    assert claim_one("2", worker="w1", idle=ALL[1:2], gpus=2) is None
    assert claim_one("3", worker="w2", idle=ALL[:2], gpus=2) is None
    store.request_action(large.id, "cancel")
    assert claim_one("4", worker="w2", idle=ALL[:2], gpus=2).run == "small-2"  # nothing is kept for what left the queue
    assert running.devices == ALL[:1]


def test_only_one_worker_keeps_its_gpus_for_a_large_job(submit, claim_one):
    submit("large", 2), submit("small", 1)
    assert claim_one("1", worker="w1", idle=ALL[:1], gpus=2) is None
    assert claim_one("2", worker="w2", idle=ALL[2:3], gpus=2).run == "small"


def test_higher_priority_comes_first_among_those_that_fit(submit, claim_one):
    submit("plain", 1), submit("urgent", 1, priority=1), submit("too-large", 8, priority=2)
    assert [claim_one(owner, idle=ALL[n : n + 1], gpus=4).run for n, owner in enumerate("ab")] == ["urgent", "plain"]


def test_jobs_for_another_kind_of_worker_do_not_block_others(submit, claim_one):
    for number in range(150):
        submit(f"gpu-{number}", 1)
    submit("cpu", 0)
    assert claim_one().run == "cpu"


def test_job_that_asks_for_no_number_of_gpus_takes_one_only_where_there_is_one(submit, claim_one):
    submit("any", None), submit("any-2", None)
    assert claim_one("1").devices == ()
    assert claim_one("2", idle=ALL, gpus=4).devices == ALL[:1]
