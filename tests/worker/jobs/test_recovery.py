"""Job records rebuilt from disk alone."""

import uuid

import pytest

from model_core.config_loader import parse_config
from model_core.entrypoint import Attempt
from model_core.errors import RunBusy
from model_core.storage.events import EventWriter
from model_core.storage.files import write_json, write_text
from model_core.storage.run import Run
from tests.worker.harness import submit_job
from worker.jobs import commands
from worker.jobs.recovery import BadFile, jobs_on_disk, rebuild, restore, write_job_file
from worker.jobs.schemas import Progress
from worker.jobs.spec import parse_spec

ERROR = {"code": "invalid_data", "detail": "the numbers are wrong", "step": None, "hint": "mend them"}
OTHER = f"job_{'f' * 32}"


def write_events(run, number, *, steps=3, seq_after=0):
    writer = EventWriter(run.events, number, seq_after=seq_after)
    writer.append("start", max_steps=100)
    for step in range(1, steps + 1):
        writer.append("step", step=step, loss=1 / step, tokens_per_s=1000.0)
    writer.close()


@pytest.fixture
def layout(settings):
    return settings.layout


@pytest.fixture
def claim(store, claim_one, make_spec, layout):
    """Submit a job and claim it; its job.json lies as its worker writes it before the child starts."""

    def claim(run, **job):
        submit_job(store, make_spec(run, **job), fingerprint=run)
        taken = claim_one(uuid.uuid4().hex)
        write_job_file(layout.jobs / taken.id, taken, "running")
        return taken

    return claim


@pytest.fixture
def train(layout):
    """What a child leaves of an attempt that did some steps."""

    def train(taken, *, number=1, outcome=None, error=None):
        run = Run(layout.run(taken.run))
        if not run.path.exists():
            Run.create(run.path, parse_config(taken.config).config, taken.id)
        run.begin_attempt(number, taken.id)
        write_events(run, number)
        if outcome:
            Attempt(run.path, number).finish(outcome, error)

    return train


@pytest.fixture
def saved(layout):
    """The record of the only job."""

    def saved():
        ((job,), bad) = jobs_on_disk(layout)
        assert bad == []
        return rebuild(layout, job)

    return saved


def test_what_was_cut_off_is_paused_where_it_was(claim, train, saved, store):
    taken = claim("one", priority=3, metadata={"who": "me"})
    train(taken)
    before, record = store.get(taken.id), saved()
    assert (record.id, record.kind, record.run, record.status, record.attempt) == (
        taken.id,
        "train",
        "one",
        "paused",
        1,
    )
    assert (record.priority, record.metadata, record.config) == (3, {"who": "me"}, taken.config)
    assert record.progress.model_copy(update={"eta_s": None}) == Progress(
        step=3, max_steps=100, loss=1 / 3, tokens_per_s=1000.0
    )
    assert (record.last_seq, record.error, record.finished_at_ms) == (4, None, None)
    assert record.created_at_ms == taken.request["created_at"] <= record.started_at_ms
    assert before.created_at.endswith("Z")


@pytest.mark.parametrize(("outcome", "error"), [("succeeded", None), ("failed", ERROR)])
def test_the_child_says_how_it_ended_when_its_worker_could_not(claim, train, saved, outcome, error):
    train(claim("one"), outcome=outcome, error=error)
    record = saved()
    assert record.status == outcome
    assert (record.error.model_dump() if record.error else None) == error
    assert record.finished_at_ms >= record.started_at_ms


def test_what_stopped_is_paused_unless_it_was_cancelled(claim, train, saved, layout):
    taken = claim("one")
    train(taken, outcome="stopped")
    assert saved().status == "paused"
    write_job_file(layout.jobs / taken.id, taken, "cancelled")
    assert saved().status == "cancelled"


def test_what_job_json_says_of_an_earlier_attempt_does_not_count(claim, train, saved, layout):
    taken = claim("one")
    train(taken, outcome="stopped")
    write_job_file(layout.jobs / taken.id, taken, "cancelled")
    train(taken, number=2, outcome="succeeded")  # by hand, with --resume
    assert (saved().status, saved().attempt) == ("succeeded", 2)


@pytest.mark.parametrize("number", [2, 7])
def test_no_attempt_is_ever_counted_twice(claim, train, saved, layout, number):
    taken = claim("one")
    train(taken, number=3)
    Run(layout.run("one")).begin_attempt(number, taken.id)
    assert saved().attempt == max(3, number)


def test_a_job_without_job_json_is_read_from_its_configuration(claim, train, saved, layout):
    taken = claim("one")
    train(taken)
    (layout.jobs / taken.id / "job.json").unlink()
    record = saved()
    assert (record.id, record.kind, record.run, record.status) == (taken.id, "train", "one", "paused")
    assert record.gpus is None
    assert record.created_at_ms == record.started_at_ms
    assert parse_config(record.config).config.training.max_steps == 3


def test_its_own_configuration_is_preferred_to_the_one_its_run_resolved(claim, train, saved, layout):
    taken = claim("one")
    train(taken)
    (layout.jobs / taken.id / "job.json").unlink()
    write_text(layout.jobs / taken.id / "config.yaml", "experiment_name: one\ndevice: {device: cpu}\n")
    assert saved().config == {"experiment_name": "one", "device": {"device": "cpu"}}
    assert saved().gpus == 0


def test_a_test_has_its_records_in_its_own_directory(saved, layout):
    job_id = f"job_{'a' * 32}"
    directory = layout.jobs / job_id
    write_text(directory / "config.yaml", "experiment_name: read\nexecution: {train: false, test: true}\n")
    attempt = Attempt(directory, 1)
    attempt.emit("start", step=30)
    attempt.finish("succeeded")
    record = saved()
    assert (record.id, record.kind, record.run, record.status) == (job_id, "test", "read", "succeeded")
    assert (record.progress.step, record.last_seq) == (30, 2)


def test_a_training_that_was_refused_says_so_beside_its_configuration(claim, saved, layout):
    taken = claim("one")
    record = {
        "schema_version": 1,
        "attempt": 1,
        "outcome": "failed",
        "error": ERROR,
        "time": "2026-01-01T00:00:00.000Z",
    }
    write_json(layout.jobs / taken.id / "outcome.json", record)
    assert (saved().status, saved().error.code) == ("failed", "invalid_data")


def test_a_job_whose_name_went_to_another_was_over(claim, saved, layout):
    taken = claim("one")
    assert saved().status == "paused"
    Run.create(layout.run("one"), parse_config(taken.config).config)  # by hand
    assert saved().status == "cancelled"


def test_after_a_beginning_from_scratch_the_new_run_counts(claim, train, saved, layout, store):
    taken = claim("one")
    train(taken)
    new = Run.create(layout.run("one-2"), parse_config(taken.config).config, taken.id)
    new.begin_attempt(2, taken.id)
    write_events(new, 2, steps=0, seq_after=4)
    (layout.jobs / taken.id / "job.json").unlink()
    assert (saved().run, saved().attempt, saved().last_seq, saved().progress.step) == ("one-2", 2, 5, 0)


def test_a_run_that_somebody_holds_is_left_alone(claim, train, saved, layout):
    train(claim("one"))
    with Run(layout.run("one")).lock(), pytest.raises(RunBusy):
        saved()
    assert saved().status == "paused"


def test_events_that_nobody_understands_are_passed_over(claim, train, saved, layout, caplog):
    train(claim("one"))
    with (layout.run("one") / "events.jsonl").open("ab") as file:
        file.write(b'{"seq": 9, "type": "step", "step": "two"}\nnot json\n{"seq": 1')
    assert (saved().last_seq, saved().progress.step) == (9, 3)
    assert {(record.name, record.levelname) for record in caplog.records} == {("model_core.storage.events", "WARNING")}


def test_an_unreadable_outcome_is_no_outcome(claim, train, layout):
    train(claim("one"), outcome="succeeded")
    (layout.run("one") / "outcome.json").write_text('{"attempt": 1}')
    ((job,), _) = jobs_on_disk(layout)
    with pytest.raises(BadFile, match=r"outcome\.json"):
        rebuild(layout, job)


@pytest.mark.parametrize("status", ["succeeded", "failed", "paused", "cancelled"])
def test_a_record_put_back_is_found_like_any_other(claim, train, saved, layout, store, status):
    taken = claim("one")
    train(taken)
    write_job_file(layout.jobs / taken.id, taken, status)
    store._redis.flushall()
    assert store.run(restore(saved()))
    assert not store.run(restore(saved()))
    assert store.get(taken.id).status == status
    assert [job.id for job in store.run(commands.page(status=status, run="one", kind="train")).jobs()] == [taken.id]


@pytest.mark.parametrize("kind", ["export", "ablate"])
def test_what_others_share_is_restored(store, claim_one, saved, layout, redis_url, connected, kind: str):
    options = {"options": {"checkpoint": "step=5"}} if kind == "ablate" else {}
    wanted = parse_spec({"experiment_name": "one", "job": {"kind": kind, **options}})
    submit_job(store, wanted, fingerprint="one")
    taken = claim_one(uuid.uuid4().hex)
    write_job_file(layout.jobs / taken.id, taken, "running")
    writer = EventWriter(layout.jobs / taken.id / "events.jsonl", 1)
    writer.append("progress", done=2, of=6, unit="files")
    writer.close()
    record = saved()
    connected(redis_url, for_api=False).flushdb()
    assert store.run(restore(record))
    again = submit_job(store, wanted, fingerprint="other")
    assert (again.created, again.job.id, again.job.status) == (False, taken.id, "paused")
    assert (again.job.progress.step, again.job.progress.done, again.job.run) == (None, 2, "one")
