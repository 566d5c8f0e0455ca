"""The table of job kinds, and what is derived from it."""

from pathlib import Path

import pytest

from worker.jobs.kinds import KINDS, argv, kind_of, kind_without_name, maker_of


@pytest.mark.parametrize(("trains", "kind"), [(True, "train"), (False, "test")])
def test_kind_of_a_request_that_names_none_comes_from_execution(trains, kind):
    assert kind_without_name(trains=trains) == kind


def test_each_resource_has_one_maker():
    makers = [kind.makes for kind in KINDS.values() if kind.makes]
    assert sorted(makers) == ["dataset", "export", "run"]
    assert [KINDS[maker_of(resource)].makes for resource in makers] == makers


def test_unknown_kind_makes_nothing():
    assert "distill" not in KINDS
    assert (kind_of("distill").name, kind_of("distill").makes) == ("distill", None)


def command(kind, **options):
    return argv(kind, run="one", job_id="job_1", attempt=2, data=Path("/data"), modules={}, **options)


def test_only_a_job_that_makes_no_run_is_given_a_directory_for_its_records():
    assert "--record" not in command("train")
    assert command("test")[-2:] == ["--record", "/data/jobs/job_1"]


def test_options_and_processes_are_arguments():
    assert command("export", options={"licence": "mit"})[-4:-2] == ["--licence", "mit"]
    assert command("train", processes=2)[2:8] == [
        "-m",
        "model_core.launch",
        "--processes",
        "2",
        "--",
        "model_core.train",
    ]
