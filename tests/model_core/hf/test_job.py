"""Export as a worker starts it: events, an outcome, and one folder for repeated requests."""

from pathlib import Path

import pytest

from model_core.config_loader import to_yaml
from model_core.hf.export_folder import read_licence
from model_core.hf.job import main
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json
from tests.model_core.hf.folders import SHAPES, MakeRun


@pytest.fixture
def arguments(tmp_path: Path, make_run: MakeRun, signals: None) -> list[str]:
    run = make_run(tmp_path / "exp", "mine", **SHAPES["unequal"])
    record = tmp_path / "jobs" / "job_1"
    record.mkdir(parents=True)
    (record / "config.yaml").write_text(to_yaml(run.config()), encoding="utf-8")
    what = ["--config", str(record / "config.yaml"), "--run", "mine", "--data-root", str(tmp_path)]
    return [*what, "--job-id", "job_1", "--record", str(record)]


def test_a_job_reports_where_its_folder_is_and_does_the_work_once(arguments: list[str], tmp_path: Path) -> None:
    leftover = tmp_path / "exports" / "mine" / ".model_best-00000000.1.tmp"
    leftover.mkdir(parents=True)
    assert main(arguments) == 0
    outcome = read_json(tmp_path / "jobs" / "job_1" / "outcome.json")
    folder = tmp_path / outcome["folder"]
    assert folder == Layout.under(tmp_path).export("mine", "model_best.pt", outcome["sha256"])
    assert outcome["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert not leftover.exists()

    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    told = [(event["attempt"], event["type"]) for event in read_events(tmp_path / "jobs" / "job_1" / "events.jsonl")]
    assert told == [(number, kind) for number in (1, 2) for kind in ("start", "progress", "end")]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_what_is_left_of_a_folder_is_made_anew(arguments: list[str], tmp_path: Path, lost: str) -> None:
    assert main(arguments) == 0
    folder = tmp_path / read_json(tmp_path / "jobs" / "job_1" / "outcome.json")["folder"]
    complete = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / lost).unlink()
    assert main(arguments) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == complete
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, ".lock"}


def test_a_licence_that_is_asked_for_later_changes_the_card_alone(arguments: list[str], tmp_path: Path) -> None:
    assert main(arguments) == 0
    folder = tmp_path / read_json(tmp_path / "jobs" / "job_1" / "outcome.json")["folder"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    assert main([*arguments, "--licence", "cc-by-4.0"]) == 0
    assert main(arguments) == 0  # whoever asks without one changes nothing

    assert read_licence(folder) == "cc-by-4.0"
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"README.md"}


def test_a_job_that_cannot_begin_or_end_says_why(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "exp" / "mine" / "model_best.pt").unlink()
    assert main(arguments) == 2
    outcome = read_json(tmp_path / "jobs" / "job_1" / "outcome.json")
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "checkpoint_not_ready")
    assert main([*arguments, "--run", "nobody"]) == 2
    outcome = read_json(tmp_path / "jobs" / "job_1" / "outcome.json")
    assert (outcome["outcome"], outcome["error"]["code"]) == ("failed", "run_not_found")
