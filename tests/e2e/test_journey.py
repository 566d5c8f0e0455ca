"""End-to-end test of training, generation and attention pictures over HTTP with real processes."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from model_core.storage.events import read_events, series

pytestmark = pytest.mark.e2e


def losses(run: Path) -> dict[int, str]:
    return {step: loss.hex() for step, loss in series(read_events(run / "events.jsonl"), "step", "loss").items()}


@pytest.fixture(scope="module")
def trained(service, tiny) -> dict:
    """The run `tiny`, trained by the service from YAML, as a person submits it."""
    body = yaml.safe_dump(tiny("tiny"))
    reply = service.client.post("/jobs", content=body, headers={"Content-Type": "application/yaml"})
    assert reply.status_code == 202
    assert reply.headers["Location"] == f"/jobs/{reply.json()['id']}"
    return service.finished(reply.json()["id"])


def test_a_finished_job_says_how_far_it_came(trained: dict) -> None:
    assert trained["progress"]["step"] == trained["progress"]["max_steps"] == 30
    assert [change["to"] for change in trained["history"]] == ["queued", "running", "succeeded"]
    assert trained["terminal"] is True


def test_a_run_writes_text(service, trained: dict) -> None:
    asked = {"run": "tiny", "prompt": "The cat", "max_new_tokens": 8, "seed": 1}
    reply = service.client.get("/generate", params=asked)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    assert (len(choice["tokens"]), choice["finish_reason"]) == (8, "length")
    text = service.client.get("/generate", params=asked, headers={"Accept": "text/plain"}).text
    assert text == choice["text"]


def test_a_run_shows_where_its_heads_look(service, trained: dict) -> None:
    picture = service.client.get("/attention/tiny/0")
    assert picture.headers["content-type"] == "image/png"
    Image.open(io.BytesIO(picture.content)).verify()
    manifest = service.client.get("/attention/tiny/0", headers={"Accept": "application/json"}).json()
    assert [layer["n_head"] for layer in manifest["layers"]] == [4, 2, 1]
    heads = [service.client.get(f"/attention/tiny/0?layer=0&head={head}").content for head in (0, 1)]
    first, second = (np.asarray(Image.open(io.BytesIO(head)).convert("RGB")) for head in heads)
    assert first.shape == second.shape
    assert (first != second).any()
    assert service.client.get("/attention/tiny/0/layer02.png").status_code == 200
    assert service.client.get("/attention/tiny/0/layer03.png").status_code in {404, 422}


@pytest.mark.slow
def test_a_name_is_taken_once(service, tiny, trained: dict) -> None:
    refused = service.client.post("/jobs", json=tiny("tiny"))
    assert (refused.status_code, refused.json()["code"]) == (409, "run_exists")
    assert "tiny-2" in refused.text
    accepted = service.client.post("/jobs?run=second", json=tiny("tiny"))
    assert accepted.status_code == 202
    assert service.finished(accepted.json()["id"])["run"] == "second"


def test_by_hand_and_by_the_service_the_losses_are_the_same_bits(service, tiny, trained: dict, tmp_path: Path) -> None:
    source = f"file:{service.data / 'uploads' / 'text.txt'}"
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny("tiny", data={"source": source})))
    command = [sys.executable, "-m", "model_core.train", "--config", str(file), "--data-root", str(tmp_path / "data")]
    subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "data" / "exp" / "tiny") == losses(service.data / "exp" / "tiny")


@pytest.mark.slow
def test_one_slot_runs_jobs_one_after_another_in_order(service, tiny) -> None:
    jobs = [service.submit(tiny(f"queue{n}"))["id"] for n in range(3)]
    assert service.job(jobs[2])["status"] == "queued"
    done = [service.finished(job) for job in jobs]
    assert done[0]["finished_at"] <= done[1]["started_at"]
    assert done[1]["finished_at"] <= done[2]["started_at"]


@pytest.mark.slow
def test_a_key_makes_one_job(service, tiny) -> None:
    first = service.submit(tiny("keyed"), **{"Idempotency-Key": "abc"})
    assert service.submit(tiny("keyed"), **{"Idempotency-Key": "abc"})["id"] == first["id"]
    other = service.client.post("/jobs", json=tiny("keyed2"), headers={"Idempotency-Key": "abc"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    service.finished(first["id"])


@pytest.mark.slow
def test_cancelling_ends_the_process_first_and_frees_the_slot(service, tiny) -> None:
    long = service.submit(tiny("endless", training={"max_steps": 1_000_000}))["id"]
    running = service.until(long, lambda job: job["progress"]["step"] > 5)
    pid = running["worker"]["pid"]
    assert psutil.pid_exists(pid)
    assert service.client.post(f"/jobs/{long}/cancel").status_code in {200, 202}
    service.until(long, lambda job: job["status"] == "cancelled")
    assert not psutil.pid_exists(pid)
    service.finished(service.submit(tiny("after"))["id"])


def test_text_is_written_while_another_job_trains(service, tiny, trained: dict) -> None:
    long = service.submit(tiny("busy", training={"max_steps": 1_000_000}))["id"]
    service.until(long, lambda job: job["progress"]["step"] > 5)
    reply = service.client.get("/generate", params={"run": "tiny", "max_new_tokens": 5})
    assert reply.status_code == 200
    assert service.job(long)["status"] == "running"
    service.client.post(f"/jobs/{long}/cancel")
    service.until(long, lambda job: job["status"] == "cancelled")


@pytest.mark.slow
def test_a_killed_child_goes_on_bit_for_bit(service, tiny) -> None:
    changes = {"training": {"max_steps": 600}, "evaluation": {"checkpoint_every": 50}}
    straight = service.submit(tiny("straight", **changes))["id"]
    service.finished(straight)
    cut = service.submit(tiny("cut", **changes))["id"]
    run = service.data / "exp" / "cut"
    service.until(cut, lambda job: any(run.glob("model_00*.json")))
    os.kill(service.job(cut)["worker"]["pid"], signal.SIGKILL)
    assert service.finished(cut)["attempt"] >= 2
    events = list(read_events(run / "events.jsonl"))
    resumed = next(event for event in events if event["type"] == "resumed")
    later = [event["step"] for event in events if event["type"] == "step" and event["attempt"] == resumed["attempt"]]
    assert resumed["step"] > 0
    assert min(later) == resumed["step"] + 1
    assert losses(run) == losses(service.data / "exp" / "straight")


def test_a_stream_that_is_cut_and_resumed_sends_each_event_once(service, tiny) -> None:
    job = service.submit(tiny("streamed", training={"max_steps": 300}))["id"]
    seen: list[int] = []
    closed = False
    for _ in range(50):
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen[-1] if seen else 0)}
        with service.client.stream("GET", f"/jobs/{job}/events", headers=headers) as stream:
            cut_at = len(seen) + 60
            for line in stream.iter_lines():
                if line.startswith("id:"):
                    seen.append(int(line.removeprefix("id:")))
                if len(seen) >= cut_at:
                    break
            else:
                closed = True
        if closed:
            break
    assert closed
    assert seen == [event["seq"] for event in read_events(service.data / "exp" / "streamed" / "events.jsonl")]


def test_a_test_job_draws_the_run_it_names(service, trained: dict) -> None:
    tree = {"experiment_name": "tiny", "execution": {"train": False, "test": True}, "testing": {"num_test_samples": 2}}
    job = service.finished(service.submit(tree)["id"])
    assert job["kind"] == "test"
    pictures = sorted(path.name for path in (service.data / "attention_outputs" / "tiny" / "1").glob("*.png"))
    assert pictures == ["layer00.png", "layer01.png", "layer02.png"]
    outcome = json.loads((service.data / "jobs" / job["id"] / "outcome.json").read_text())
    assert outcome["outcome"] == "succeeded"
