"""The report of a run over HTTP, and its warnings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from model_core.storage.dataset import MANIFEST

REPORT = "/runs/tiny/report"


def asked_on_the_command_line(site, run: str) -> dict[str, Any]:
    file = site.layout.run(run) / "config.yaml"
    told = subprocess.run(
        [sys.executable, "-m", "headcount", "report", str(file), "--json"],
        env={**os.environ, "HEADCOUNT_DATA": str(site.settings.data)},
        capture_output=True,
        text=True,
        check=True,
    )
    tree: dict[str, Any] = json.loads(told.stdout)
    return tree


def test_it_is_what_the_command_answers_for_the_runs_own_configuration(site) -> None:
    site.make_run("tiny")
    reply = site.http.get(REPORT)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    tree = reply.json()
    assert (tree.pop("object"), tree.pop("run")) == ("report", "tiny")
    assert tree == asked_on_the_command_line(site, "tiny")
    assert [layer["n_head"] for layer in tree["budget"]["layers"]] == [4, 2]


def test_a_validation_answers_the_same_budget(site) -> None:
    run = site.make_run("tiny")
    body = run.config().model_dump(mode="json", exclude={"data": {"data_dir"}, "output": True})
    checked = site.http.post("/jobs", json=body, params={"validate_only": "true", "run": "other"})
    assert checked.status_code == 200, checked.text
    assert checked.json()["budget"] == site.http.get(REPORT).json()["budget"]


def test_people_get_markdown_by_accept_or_by_format(site) -> None:
    site.make_run("tiny")
    accepted = site.http.get(REPORT, headers={"Accept": "text/markdown"})
    assert (accepted.status_code, accepted.headers["content-type"]) == (200, "text/markdown; charset=utf-8")
    assert accepted.text.startswith("# tiny\n")
    assert site.http.get(REPORT, params={"format": "md"}, headers={"Accept": "application/json"}).text == accepted.text
    assert site.http.get(REPORT, params={"format": "json"}, headers={"Accept": "text/markdown"}).json()["run"] == "tiny"
    assert accepted.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/runs/nowhere/report", {}, 404, "run_not_found"),
        (f"{REPORT}?format=pdf", {}, 422, "invalid_parameter"),
        (REPORT, {"Accept": "image/png"}, 406, "not_acceptable"),
    ],
)
def test_what_cannot_be_reported_is_refused_by_name(site, path: str, headers: dict, status: int, code: str) -> None:
    site.make_run("tiny")
    reply = site.http.get(path, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_the_schema_describes_it_number_by_number(site) -> None:
    site.make_run("tiny")
    schema = site.http.get("/openapi.json").json()
    content = schema["paths"]["/runs/{run}/report"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/markdown"}
    text = json.dumps({**content["application/json"]["schema"], "components": schema["components"]})
    jsonschema.validate(site.http.get(REPORT).json(), json.loads(text))
    assert {"kv_bytes_per_token", "softmax_elements", "flash"} <= set(
        schema["components"]["schemas"]["LayerBudget"]["properties"]
    )


def test_epochs_are_those_of_the_dataset_in_the_data_root(site) -> None:
    site.make_run("tiny")
    words: Path = site.layout.dataset("words")
    (words / MANIFEST).unlink()  # which would say how many there are
    np.save(words / "words_train.npy", np.zeros(96, np.uint16))
    schedule = site.http.get(REPORT).json()["budget"]["schedule"]
    assert (schedule["train_tokens"], schedule["tokens"], schedule["epochs"]) == (96, 192, 2.0)


def test_checkpoints_that_may_not_fit_on_the_disk_are_a_warning(site) -> None:
    everything = {"checkpoint_every": 1, "max_checkpoints_to_keep": 2**40}
    body = {
        "experiment_name": "large",
        "evaluation": everything,
        "training": {"max_steps": 2**40},
        "data": {"source": "stories"},
    }
    checked = site.http.post("/jobs", json=body, params={"validate_only": "true"}).json()
    submitted = site.http.post("/jobs", json=body)
    assert submitted.status_code == 202
    assert "disk_low" in [warning["code"] for warning in checked["warnings"]]
    assert "disk_low" in [warning["code"] for warning in submitted.json()["warnings"]]
    modest = site.http.post("/jobs", json={"job": {"preset": "quickstart"}}, params={"validate_only": "true"}).json()
    assert "disk_low" not in [warning["code"] for warning in modest["warnings"]]


def test_validation_suggests_the_micro_batch_that_fits_the_largest_worker(site) -> None:
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 8 << 30}, 60)
    body = {"experiment_name": "big", "data": {"source": "stories"}}
    checked = site.http.post("/jobs", json=body, params={"validate_only": "true"}).json()
    (warning,) = [warning for warning in checked["warnings"] if warning["code"] == "does_not_fit"]
    assert "8.0 GiB" in warning["detail"]
    assert "training.batch_size 8" in warning["detail"]
    smaller = site.http.post("/jobs", json={**body, "training": {"batch_size": 8}}, params={"validate_only": "true"})
    assert "does_not_fit" not in [warning["code"] for warning in smaller.json()["warnings"]]
