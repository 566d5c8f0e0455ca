"""End-to-end tests of datasets: uploads and sources become datasets, and trainings use them."""

import json
import os
import signal
from pathlib import Path

import pytest

from model_core.data.ensure import prepare
from model_core.storage.dataset import MANIFEST
from model_core.storage.events import read_events

pytestmark = pytest.mark.e2e


def files(directory: Path) -> dict[str, bytes]:
    """Every file of a dataset but its manifest, which holds times."""
    shown = (path for path in directory.iterdir() if not path.name.startswith(".") and path.name != MANIFEST)
    return {path.name: path.read_bytes() for path in shown}


def test_uploaded_files_become_a_dataset_that_a_training_reads(service, tiny) -> None:
    text = (service.data / "uploads" / "text.txt").read_bytes()
    form = {"name": "mine", "tokenizer": json.dumps(tiny("x")["data"]["tokenizer"])}
    made = service.client.post("/datasets", data=form, files={"files": ("a.txt", text)}).json()
    assert (made["kind"], made["run"], made["dataset"]) == ("prepare", None, "mine")
    service.finished(made["id"])

    dataset = service.client.get("/datasets/mine").json()
    assert (dataset["state"], dataset["job"], dataset["documents"]) == ("ready", made["id"], 300)
    found = service.client.get("/datasets/mine/statistics").json()
    assert [found["splits"][split]["documents"] for split in ("train", "val", "test")] == [270, 27, 3]
    example = service.client.get("/datasets/mine/examples/2").json()
    assert example["text"] in text.decode()
    assert service.client.get("/datasets/mine/examples/3").status_code == 404

    training = service.submit(tiny("reads", data={"dataset": "mine", "source": None}))
    assert training["waiting_for"] == []
    assert service.finished(training["id"])["dataset"] == "mine"


def test_the_service_and_the_program_make_the_same_files(service, tmp_path: Path) -> None:
    job = service.submit({"job": {"kind": "prepare"}, "data": {"dataset": "both", "source": "file:uploads/text.txt"}})
    service.finished(job["id"])
    prepare(f"file:{service.data / 'uploads' / 'text.txt'}", tmp_path / "both", name="both")
    assert files(service.data / "datasets" / "both") == files(tmp_path / "both")


@pytest.mark.slow
def test_a_preparation_that_was_paused_or_killed_goes_on(service) -> None:
    lines = "".join(f"{number} is a number of its own\n" for number in range(1_000_000))  # some seconds of work
    (service.data / "uploads" / "many.txt").write_text(lines)
    body = {"name": "tales", "source": "file:uploads/many.txt"}
    job = service.client.post("/datasets", json=body).json()["id"]
    service.until(job, lambda job: (job["progress"]["done"] or 0) > 10 and job["progress"]["unit"] == "documents")
    service.client.post(f"/jobs/{job}/pause")
    paused = service.until(job, lambda job: job["status"] == "paused")
    assert service.client.get("/datasets/tales").json()["state"] == "preparing"
    assert paused["progress"]["step"] is None
    service.client.post(f"/jobs/{job}/resume")
    os.kill(service.until(job, lambda job: job["worker"] and job["worker"]["pid"])["worker"]["pid"], signal.SIGKILL)
    done = service.finished(job)
    assert done["attempt"] >= 3
    assert all(attempt["run"] is attempt["step"] is None for attempt in done["attempts"])
    [made] = [e for e in read_events(service.data / "jobs" / job / "events.jsonl") if e["type"] == "prepared"]
    assert made["documents"] > made["tokenized"] > 0
    assert service.client.delete(f"/jobs/{job}?artifacts=true").status_code == 204
    assert not (service.data / "datasets" / "tales").exists()
