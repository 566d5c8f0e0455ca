"""Which jobs are found on disk, and how bad files are reported."""

import pytest

from model_core.config import ExperimentConfig
from model_core.storage.files import Layout, read_json, write_json, write_text
from model_core.storage.run import Run
from worker.jobs.recovery import jobs_on_disk, write_deleted, write_job_file
from worker.jobs.schemas import Claim

ONE, TWO, THREE = (f"job_{letter * 32}" for letter in "abc")


@pytest.fixture
def layout(tmp_path):
    return Layout.under(tmp_path)


def leave_job(layout, job_id, *, run="one", created_at=1000):
    claim = Claim(job_id, 1, "train", run, {"experiment_name": run}, request={"created_at": created_at, "gpus": None})
    write_job_file(layout.jobs / job_id, claim, "running")


def make_run(layout, name, job_id, attempt=1):
    run = Run.create(layout.run(name), ExperimentConfig(experiment_name=name), job_id)
    run.begin_attempt(attempt, job_id)
    return run


def ids(layout):
    found, bad = jobs_on_disk(layout)
    return [job.id for job in found], [str(error) for error in bad]


def test_an_empty_data_root_has_no_jobs(layout):
    assert jobs_on_disk(layout) == ([], [])


def test_jobs_are_found_by_directory_and_by_run_the_oldest_first(layout):
    leave_job(layout, ONE, run="one", created_at=2000)
    leave_job(layout, TWO, run="two", created_at=1000)
    make_run(layout, "three", THREE)  # without events: as old as its configuration
    make_run(layout, "by-hand", None)
    assert ids(layout) == ([TWO, ONE, THREE], [])


def test_other_directories_and_empty_ones_are_no_jobs(layout):
    for name in (ONE, "notes", f".{TWO}.removed"):
        (layout.jobs / name).mkdir(parents=True)
    (layout.jobs / THREE).write_text("a file")
    assert ids(layout) == ([], [])


def test_a_deleted_job_is_not_found_though_its_run_stays(layout):
    leave_job(layout, ONE)
    make_run(layout, "one", ONE)
    assert ids(layout)[0] == [ONE]
    write_deleted(layout, ONE)
    assert ids(layout) == ([], [])


def test_a_job_owns_the_run_that_it_names_or_the_last_that_names_it(layout):
    leave_job(layout, ONE, run="one")
    for name, attempt in {"one": 1, "one-2": 2}.items():
        make_run(layout, name, ONE, attempt)
    assert jobs_on_disk(layout)[0][0].run.name == "one"
    (layout.jobs / ONE / "job.json").unlink()
    assert (jobs_on_disk(layout)[0][0].run.name, jobs_on_disk(layout)[0][0].attempt) == ("one-2", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "'list' object has no attribute 'get'"),
        ("{}", "id: Field required"),
        (f'{{"id": "{ONE}", "kind": "distill", "created_at": 1, "config": {{}}}}', "kind: "),  # of a newer version
        ("\x00\ufffd", "not JSON"),
        ("[" * 100_000, "recursion"),
        (None, f"it belongs to {TWO}"),
    ],
)
def test_a_bad_job_json_is_named_and_the_others_are_found(layout, text, said):
    leave_job(layout, TWO, run="two")
    leave_job(layout, ONE, run="one")
    path = layout.jobs / ONE / "job.json"
    path.write_text(text if text is not None else (layout.jobs / TWO / "job.json").read_text())
    found, (problem,) = ids(layout)
    assert found == [TWO]
    assert problem.startswith(f"{path}: ")
    assert said in problem


@pytest.mark.parametrize("text", ["", '{"attempt": 1, "job_id": "../../etc"}', '{"attempt": "x"}'])
def test_a_run_whose_owner_cannot_be_read_is_named_and_its_job_left_alone(layout, text):
    leave_job(layout, ONE, run="one")
    make_run(layout, "one", ONE)
    (layout.run("one") / "attempt").write_text(text)
    found, (problem,) = ids(layout)
    assert found == []
    assert problem.startswith(f"{layout.run('one') / 'attempt'}: ")


def test_a_name_that_could_leave_its_directory_is_refused(layout):
    leave_job(layout, ONE, run="one")
    path = layout.jobs / ONE / "job.json"
    write_json(path, {**read_json(path), "run": "../one"})
    assert ids(layout)[0] == []


def test_a_configuration_that_cannot_be_read_is_no_reason_to_miss_the_job(layout):
    write_text(layout.jobs / ONE / "config.yaml", "model: [")
    assert ids(layout) == ([ONE], [])
