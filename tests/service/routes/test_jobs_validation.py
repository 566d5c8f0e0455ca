"""What a submission would be: how long it would take and its place in the queue."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import pytest

from worker.jobs.redis_client import PREFIX
from worker.jobs.schemas import WorkerView

TREE: dict[str, Any] = {
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": [4, 2], "vocab_size": 512, "block_size": 64},
    "training": {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "max_steps": 10, "warmup_steps": 1},
    "data": {"dataset": "words", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}},
}
TOKENS = 640
PLACES = {"urgent": 9, "same": 3, "low": -1}  # priority by name


def validated(site: Any, name: str = "next", job: Mapping[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    body = {**copy.deepcopy(TREE), "experiment_name": name, "job": job or {}}
    body["training"] |= training
    reply = site.http.post("/jobs", json=body, params={"validate_only": "true"})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def train(site: Any, name: str, host: str, seconds: float) -> None:
    """Run a job to its end on a worker of a host."""
    reply = site.http.post("/jobs", json={**TREE, "experiment_name": name})
    assert reply.status_code == 202, reply.text
    claim = site.store.claim(name, WorkerView(id="w1", host=host))
    time.sleep(seconds)
    site.finish(claim)


def announce(site: Any, host: str) -> None:
    site.registry.register("workers", "w1", {"host": host, "slots": 1, "gpus": [], "memory_bytes": 1 << 36}, 60)


def test_time_is_taken_from_runs_of_the_shape_on_workers_that_are_alive(site) -> None:
    announce(site, "here")
    assert validated(site)["estimate"] is None
    train(site, "one", "here", 0.1)
    train(site, "two", "here", 0.2)
    train(site, "far", "there", 1.0)

    estimate = validated(site)["estimate"]
    low, high = estimate["time_s"]
    assert 0.1 <= low < high < 1.0
    assert TOKENS / 0.1 > estimate["tokens_per_s"] > TOKENS / 1.0
    assert estimate["from"].startswith("2 runs")
    assert validated(site, max_steps=20)["estimate"]["time_s"][0] == pytest.approx(2 * low, abs=0.2)
    announce(site, "there")
    assert validated(site)["estimate"]["from"].startswith("1 run ")


def test_time_of_another_shape_or_a_far_longer_run_is_not_guessed(site) -> None:
    announce(site, "here")
    train(site, "one", "here", 0.1)
    assert validated(site)["estimate"] is not None
    assert validated(site, batch_size=1)["estimate"] is None
    assert validated(site, max_steps=100)["estimate"] is None


def test_a_job_of_an_earlier_version_ends_without_a_duration(site, connected) -> None:
    announce(site, "here")
    job = site.submit()
    connected(site.settings.redis_url, for_api=False).hdel(f"{PREFIX}job:{job['id']}", "shape", "tokens")
    site.finish(site.claim())
    assert site.http.get(f"/jobs/{job['id']}").json()["status"] == "succeeded"
    assert validated(site)["estimate"] is None


def test_place_is_the_one_that_the_submission_gets(site) -> None:
    assert validated(site)["queue"] == {"position": 1, "jobs_ahead": 0, "eta_s": None}
    first = site.submit("first", job={"priority": 5})["id"]
    site.submit("second")
    expected = {name: validated(site, name, {"priority": priority})["queue"] for name, priority in PLACES.items()}
    assert {name: place["jobs_ahead"] for name, place in expected.items()} == {"urgent": 0, "same": 1, "low": 2}
    made = site.submit("same", job={"priority": PLACES["same"]})
    assert made["queue"] == expected["same"]
    assert validated(site, job={"depends_on": [first]})["queue"] is None


def test_a_job_that_would_wait_for_its_dataset_or_be_refused_has_no_place(site) -> None:
    body = {**TREE, "experiment_name": "next", "data": {**TREE["data"], "dataset": "missing"}}
    waits = site.http.post("/jobs", json=body, params={"validate_only": "true"}).json()
    assert waits["queue"] is None
    assert site.http.post("/jobs", json=body).json()["queue"] is None
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 1 << 20}, 60)
    assert validated(site)["queue"] is None
