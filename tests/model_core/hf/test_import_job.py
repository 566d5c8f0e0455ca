"""Import as a worker starts it: a run, events and an outcome, and nothing that was sent is left."""

import shutil
from pathlib import Path

import pytest

from model_core.checkpoint import load_model
from model_core.hf.export import export_run
from model_core.hf.import_job import main
from model_core.storage.events import read_events
from model_core.storage.files import Layout, read_json, write_text
from model_core.storage.run import Run
from tests.model_core.hf.folders import SHAPES, MakeRun

SENT = "uploads/.models/mine/0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path, make_run: MakeRun, signals: None) -> Path:
    root = tmp_path / "data"
    folder = export_run(make_run(tmp_path, "run", **SHAPES["unequal"]), tmp_path / "gpt2").folder
    shutil.copytree(folder, root / "uploads" / "gpt2")
    shutil.copytree(folder, root / SENT)
    (root / "jobs" / "job_1").mkdir(parents=True)
    write_text(root / "jobs" / "job_1" / "config.yaml", "experiment_name: mine\n")
    return root


def arguments(root: Path, source: str, job: str = "job_1") -> list[str]:
    record = root / "jobs" / job
    what = ["--config", str(root / "jobs" / "job_1" / "config.yaml"), "--run", "mine", "--data-root", str(root)]
    return [*what, "--record", str(record), "--job-id", job, "--source", f"file:{source}"]


def outcome(root: Path, job: str = "job_1") -> tuple[str, str | None]:
    told = read_json(root / "jobs" / job / "outcome.json")
    return told["outcome"], (told["error"] or {}).get("code")


def test_a_folder_becomes_the_run_of_its_job(root: Path) -> None:
    assert main(arguments(root, "uploads/gpt2")) == 0
    run = Run.open(Layout.under(root).run("mine"))
    assert run.attempt() == {"attempt": 1, "job_id": "job_1"}
    assert load_model(run).config.model.heads == (4, 1, 8)
    events = list(read_events(root / "jobs" / "job_1" / "events.jsonl"))
    assert [events[0]["type"], events[-1]["type"]] == ["start", "end"]
    (last,) = [event for event in events if event["type"] == "progress"][-1:]
    assert (last["done"], last["unit"]) == (last["of"], "tensors")
    assert (outcome(root), events[-1]["sha256"]) == (("succeeded", None), run.resolve("best").sha256)
    assert (root / "uploads" / "gpt2").is_dir()


def test_what_was_sent_goes_once_the_run_is_there_and_again_is_the_same(root: Path) -> None:
    assert main(arguments(root, SENT)) == 0
    assert not (root / "uploads" / ".models" / "mine").exists()
    first = Run(Layout.under(root).run("mine")).resolve("best")
    assert main(arguments(root, SENT)) == 0  # a worker that died before it could say so
    assert Run(Layout.under(root).run("mine")).resolve("best") == first


def test_a_model_that_cannot_be_used_leaves_no_run_and_keeps_what_was_sent(root: Path) -> None:
    (root / SENT / "config.json").write_text('{"model_type": "llama"}')
    assert main(arguments(root, SENT)) == 2
    assert outcome(root) == ("failed", "invalid_data")
    assert not Layout.under(root).run("mine").exists()
    assert (root / SENT).is_dir()


@pytest.mark.parametrize("lost", ["config.json", ""])
def test_what_was_removed_since_is_named_without_the_paths_of_the_server(root: Path, lost: str) -> None:
    place = root / "uploads" / "gpt2"
    (place / lost).unlink() if lost else shutil.rmtree(place)
    assert main(arguments(root, "uploads/gpt2")) == 2
    told = read_json(root / "jobs" / "job_1" / "outcome.json")["error"]
    assert (told["code"], "gpt2" in told["detail"], str(root) in told["detail"]) == ("invalid_data", True, False)


def test_the_run_of_another_stays(root: Path) -> None:
    assert main(arguments(root, "uploads/gpt2")) == 0
    (root / "jobs" / "job_2").mkdir()
    assert main(arguments(root, "uploads/gpt2", "job_2")) == 2
    assert outcome(root, "job_2") == ("failed", "run_exists")
    assert Run(Layout.under(root).run("mine")).attempt()["job_id"] == "job_1"
