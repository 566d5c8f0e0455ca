"""The table of job kinds, and what is derived from it."""

from pathlib import Path

import pytest

from worker.jobs.kinds import KINDS, argv, kind_of, kind_without_name, maker_of


@pytest.mark.parametrize(("trains", "kind"), [(True, "train"), (False, "test")])
def test_kind_of_a_request_that_names_none_comes_from_execution(trains, kind):
    assert kind_without_name(trains=trains) == kind


def test_each_resource_has_a_maker():
    resources = {kind.makes for kind in KINDS.values() if kind.makes}
    makers = {resource: maker_of(resource) for resource in resources}
    assert makers == {"ablation": "ablate", "dataset": "prepare", "export": "export", "run": "train"}


def test_unknown_kind_makes_nothing():
    assert "distill" not in KINDS
    assert (kind_of("distill").name, kind_of("distill").makes) == ("distill", None)


def command(kind, **options):
    return argv(kind, run="one", job_id="job_1", attempt=2, data=Path("/data"), modules={}, **options)


def test_a_job_that_does_not_write_in_its_run_is_given_a_directory_for_its_records():
    assert "--record" not in command("train")
    assert command("test")[-2:] == ["--record", "/data/jobs/job_1"]
    assert command("import", options={"source": "file:uploads/gpt2"})[-4:] == [
        "--source", "file:uploads/gpt2", "--record", "/data/jobs/job_1",
    ]  # fmt: skip


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
