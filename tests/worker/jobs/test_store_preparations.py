"""Preparations in the store: sharing, waiting, and recovery."""

import pytest

from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import DatasetBusy, DatasetExists
from model_core.storage.events import EventWriter
from tests.worker.harness import submit_job
from worker.jobs import commands
from worker.jobs.recovery import jobs_on_disk, rebuild, restore, write_job_file
from worker.jobs.schemas import JobError, Outcome, Progress
from worker.jobs.spec import parse_spec

CRASH = Outcome("crashed", "the process was ended by SIGKILL")
DONE = Outcome("succeeded", "finished")


def preparation(name="tales", seed=None, **data):
    device = {} if seed is None else {"device": {"seed": seed}}
    return parse_spec({"job": {"kind": "prepare"}, "data": {"dataset": name, "source": "stories", **data}, **device})


@pytest.fixture
def prepare(store):
    return lambda *args, **data: submit_job(store, preparation(*args, **data), fingerprint="f")


@pytest.fixture
def train(store):
    """Submit a training whose dataset is missing."""

    def train(run, **data):
        spec = parse_spec({"experiment_name": run, "data": {"dataset": "tales", "source": "stories", **data}})
        return submit_job(store, spec, key=run, fingerprint="f", preparation=DatasetSpec.of(spec.config.data)).job

    return train


def told(seq, done):
    return {"seq": seq, "type": "progress", "time": "2026-01-01T00:00:00.000Z", "attempt": 1, "done": done, "of": 90,
            "unit": "documents"}  # fmt: skip


def test_what_decides_the_bytes_decides_who_shares() -> None:
    recipes = [preparation(**data).recipe for data in ({}, {"split": [0.9, 0.09, 0.01]}, {"shuffle": "none"})]
    others = [preparation(**data).recipe for data in ({"seed": 7}, {"dedupe": True}, {"split": [0.8, 0.1, 0.1]})]
    assert len(set(recipes)) == 1
    assert len({*recipes, *others}) == 4


def test_a_preparation_needs_no_gpu_and_keeps_no_run(prepare, claim_one):
    job = prepare().job
    assert (job.kind, job.run, job.dataset, job.progress) == ("prepare", None, "tales", Progress(step=None))
    claim = claim_one(gpus=4)
    assert (claim.run, claim.dataset, claim.devices) == (None, "tales", ())


def test_equal_requests_get_one_job_and_other_ones_are_refused(store, prepare):
    first, again = prepare(), prepare()
    assert (again.job.id, again.created) == (first.job.id, False)
    with pytest.raises(DatasetExists, match=first.job.id) as refused:
        prepare(dedupe=True)
    assert refused.value.next_free == "tales-2"
    store.request_action(first.job.id, "cancel")
    assert prepare(dedupe=True).created


def test_trainings_wait_for_one_preparation_and_go_on_when_it_is_done(store, train, claim_one):
    first, second = train("one"), train("two")
    assert first.waiting_for == second.waiting_for
    assert train("one").id == first.id
    assert len(store.run(commands.page()).jobs()) == 3
    store.finish(claim_one("a"), DONE)
    assert [claim_one(owner).run for owner in "bc"] == ["one", "two"]


def test_a_training_takes_a_dataset_that_is_split_with_another_seed_unless_its_text_is_made_from_it(prepare, train):
    made = prepare(source="pydoc", seed=7).job
    assert train("one", source="pydoc").waiting_for == (made.id,)
    prepare("other", seed=7)
    with pytest.raises(DatasetExists):
        train("two", dataset="other")


def test_only_crashes_without_new_documents_count(store, prepare, claim_one):
    job_id = prepare().job.id
    store.finish(claim_one("a"), CRASH)
    progressing = claim_one("b")
    store.mirror(progressing, [told(1, 40)], Progress(step=None, done=40, of=90, unit="documents"))
    statuses = [store.finish(progressing, CRASH), *(store.finish(claim_one(owner), CRASH) for owner in "cde")]
    assert statuses == ["queued", "queued", "queued", "failed"]
    detail = store.detail(job_id)
    assert (detail.progress.done, detail.progress.step) == (40, None)
    assert {attempt.step for attempt in detail.attempts} == {None}


def test_a_preparation_in_use_cannot_be_deleted_with_what_it_made(store, prepare, train, claim_one):
    job_id = prepare().job.id
    reader = train("one")
    store.finish(claim_one(), DONE)
    assert store.run(commands.active_user("tales")) == reader.id
    with pytest.raises(DatasetBusy) as refused:
        store.mark_deleted(job_id, with_artifacts=True)
    assert refused.value.job_id == reader.id
    store.mark_deleted(job_id, with_artifacts=False)
    store.purge(job_id)
    assert store.run(commands.dataset_jobs(["tales", "none"])) == [None, None]


def test_a_dependent_says_why_its_preparation_failed(store, train, claim_one):
    reader = train("one")
    error = JobError(code="hub_login_required", detail="say who you are")
    store.finish(claim_one(), Outcome("failed", error.detail, error))
    assert store.get(reader.id).error.detail.endswith(error.detail)


def test_a_lost_preparation_is_put_together_again_and_keeps_its_name(store, settings, connected, prepare, claim_one):
    job_id = prepare(tokenizer={"type": "bpe", "vocab_size": 300}).job.id
    claim = claim_one()
    directory = settings.layout.jobs / job_id
    write_job_file(directory, claim, "running")
    writer = EventWriter(directory / "events.jsonl", 1)
    writer.append("progress", done=40, of=90, unit="documents")
    writer.append("resumed", file="progress.json", step=40)
    writer.close()
    ((job,), bad) = jobs_on_disk(settings.layout)
    record = rebuild(settings.layout, job)
    connected(settings.redis_url, for_api=False).flushall()
    assert (bad, store.run(restore(record))) == ([], True)
    job = store.get(job_id)
    assert (job.kind, job.run, job.dataset, job.status) == ("prepare", None, "tales", "paused")
    assert (job.progress.done, job.progress.step) == (40, None)
    assert prepare(tokenizer={"type": "bpe", "vocab_size": 300}).job.id == job_id
    with pytest.raises(DatasetExists):
        prepare()
