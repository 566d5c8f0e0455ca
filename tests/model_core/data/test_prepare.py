"""`python -m model_core.data.prepare` as the supervisor starts it."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from model_core.storage.events import read_events
from model_core.storage.files import read_json
from tests.polling import eventually


@pytest.fixture
def start(tmp_path):
    """Start an attempt of the job as a worker does, with a pipe that stays open as long as the test."""
    record, children = tmp_path / "jobs" / "job_1", []

    def start(attempt, **data):
        record.mkdir(parents=True, exist_ok=True)
        (record / "config.yaml").write_text(yaml.safe_dump({"data": data}))
        command = [sys.executable, "-m", "model_core.data.prepare", "--config", str(record / "config.yaml")]
        command += ["--run", "tales", "--data-root", str(tmp_path), "--attempt", str(attempt), "--job-id", "job_1"]
        command += ["--record", str(record)]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return children[-1], record

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_a_job_that_is_stopped_says_so_and_goes_on(start, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"Line {n}: {'the cat sat on the mat ' * 12}" for n in range(20_000)))
    data = {"dataset": "tales", "source": f"file:{corpus}"}
    child, record = start(1, **data)
    eventually(lambda: (record / "events.jsonl").exists() and (record / "events.jsonl").stat().st_size)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 75
    assert (read_json(record / "outcome.json")["outcome"], read_json(record / "outcome.json")["reason"]) == (
        "stopped", "SIGTERM",
    )  # fmt: skip
    child, record = start(2, **data)
    assert child.wait(timeout=120) == 0
    events = [event for event in read_events(record / "events.jsonl") if event["attempt"] == 2]
    last = [event for event in events if event["type"] == "progress"][-1]
    assert (last["done"], last["of"], last["unit"]) == (20_000, 20_000, "documents")
    prepared, end = events[-2:]
    assert (prepared["type"], prepared["dataset"], prepared["documents"]) == ("prepared", "tales", 20_000)
    assert (end["type"], end["outcome"]) == ("end", "succeeded")
    assert (tmp_path / "datasets" / "tales" / "tales_train.npy").is_file()


@pytest.mark.parametrize(
    ("data", "code"), [({"source": "file:nowhere.txt"}, "invalid_data"), ({}, "invalid_parameter")]
)
def test_a_job_that_cannot_be_done_records_why(start, data, code):
    child, record = start(1, **data)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2
    assert said.strip().splitlines()[-1].startswith("error: ")
    outcome = read_json(record / "outcome.json")
    assert (outcome["attempt"], outcome["outcome"], outcome["error"]["code"]) == (1, "failed", code)


def test_a_package_that_is_not_installed_is_reported_with_what_brings_it(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')")
    command = [sys.executable, "-m", "model_core.data.prepare", "--source", "stories", "--out", str(tmp_path / "out")]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "pyarrow" in done.stderr
    assert "pip install 'headcount[worker]'" in done.stderr
