"""Trainings on a dataset that is only just uploaded, texts that are too short, and a disk without a free byte."""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import redis

from service.deps import Services
from service.protocol.errors import NotReady
from service.routes.health import readiness
from service.settings import ServiceSettings
from tests.service.conftest import TREE, Site, _shared_site, make_site, site
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import redis_errors

__all__ = ["_shared_site", "make_site", "site"]  # fixtures

BPE = {"type": "bpe", "vocab_size": 300}
BPE_NAME = {"kind": "bpe", "n_vocab": 300, "sha256": "0" * 64, "file": "tokenizer.json", "asked": "bpe:300"}
SMALL = {**TREE["model"], "vocab_size": 300}
PRESET = {"job": {"preset": "quickstart"}, "experiment_name": "learns"}
SPLIT = [0.8, 0.1, 0.1]
OTHERWISE = {"tokenizer": BPE, "split": SPLIT, "dedupe": True, "seed": 7}

# What the preparation was asked for beside its name, and the training that names the dataset.
JOINED = [
    ({}, {"data": {"dataset": "tales"}}),
    ({}, {"data": {"dataset": "tales", "tokenizer": "gpt2"}, "model": {"n_layer": 1}}),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales"}}),
    ({"tokenizer": BPE}, {"data": {"train_file": "tales_train.npy"}}),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales", "shuffle": "none"}}),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales"}, "model": SMALL}),  # too small for the default tokenizer
    ({"tokenizer": BPE}, {"data": {"dataset": "tales", "tokenizer": BPE}, "model": SMALL}),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales", "source": "stories"}, "model": SMALL}),
    ({"split": SPLIT}, {"data": {"dataset": "tales", "source": "stories"}}),
    ({"seed": 7}, {"data": {"dataset": "tales"}}),
    (OTHERWISE, {"data": {"dataset": "tales"}}),
    (OTHERWISE, {"data": {"dataset": "tales", "split": SPLIT}}),
    ({"tokenizer": BPE}, {**PRESET, "data": {"dataset": "tales"}}),  # the preset's source and tokenizer are others
    (OTHERWISE, {**PRESET, "data": {"dataset": "tales"}}),
]
CONTRADICTED = [
    ({}, {"data": {"dataset": "tales", "tokenizer": BPE}}, (409, "dataset_exists")),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales", "tokenizer": "gpt2"}, "model": {}}, (409, "dataset_exists")),
    ({"tokenizer": BPE}, {"data": {"dataset": "tales", "split": SPLIT}}, (409, "dataset_exists")),
    ({}, {"data": {"dataset": "tales", "source": "pydoc"}}, (409, "dataset_exists")),
    ({}, {"data": {"dataset": "tales"}, "model": SMALL}, (422, "invalid_config")),  # its tokenizer has more ids
    ({}, {"data": {"dataset": "other"}}, (409, "dataset_not_ready")),
]
LARGE = {"n_layer": 1, "n_embd": 32, "n_head": 2, "block_size": 64}


def body(sections: dict[str, Any]) -> dict[str, Any]:
    basis = {} if "job" in sections else {key: TREE[key] for key in ("experiment_name", "training")} | {"model": LARGE}
    return {**basis, **sections}


@pytest.mark.parametrize(("asked", "sections"), JOINED)
def test_a_training_joins_the_preparation_of_the_dataset_that_it_names(site: Site, asked: Any, sections: Any) -> None:
    preparation = site.http.post("/datasets", json={"name": "tales", "source": "stories", **asked}).json()
    checked = site.http.post("/jobs", json=body(sections), params={"validate_only": "true"}).json()
    assert checked["config"]["data"]["tokenizer"] == asked.get("tokenizer", "gpt2")
    assert "dataset_made_first" in [warning["code"] for warning in checked["warnings"]]
    reply = site.http.post("/jobs", json=body(sections))
    assert reply.status_code == 202, reply.text
    assert (reply.json()["waiting_for"], reply.json()["dataset"]) == ([preparation["id"]], "tales")
    assert len(site.http.get("/jobs").json()["data"]) == 2
    claim = site.claim()
    site.finish(claim)
    data = site.claim().config["data"]
    assert data.get("tokenizer", "gpt2") == asked.get("tokenizer", "gpt2")
    assert data.get("source") == sections["data"].get("source")  # not a preset's, which is another text


@pytest.mark.parametrize(("asked", "sections"), JOINED)
def test_the_same_training_is_taken_when_the_dataset_is_ready(site: Site, asked: Any, sections: Any) -> None:
    facts = {key: value for key, value in asked.items() if key in {"split", "dedupe"}}
    site.add_dataset("tales", **facts, **({"tokenizer": BPE_NAME} if "tokenizer" in asked else {"seed": 1337}))
    reply = site.http.post("/jobs", json={**body(sections), "training": TREE["training"]})
    assert (reply.status_code, reply.json().get("waiting_for")) == (202, []), reply.text


@pytest.mark.parametrize(("asked", "sections", "answer"), CONTRADICTED)
def test_a_training_that_states_something_else_is_refused(site: Site, asked: Any, sections: Any, answer: Any) -> None:
    site.http.post("/datasets", json={"name": "tales", "source": "stories", **asked})
    reply = site.http.post("/jobs", json=body(sections))
    assert (reply.status_code, reply.json()["code"]) == answer
    assert len(site.http.get("/jobs").json()["data"]) == 1


@pytest.mark.parametrize(("end", "action"), [("failed", "retry"), ("cancelled", "resume")])
def test_a_dataset_whose_preparation_is_dead_is_named_with_that_job(site: Site, end: str, action: str) -> None:
    preparation = site.http.post("/datasets", json={"name": "tales", "source": "stories"}).json()["id"]
    if end == "failed":
        site.finish(site.claim(), "failed")
    else:
        site.http.post(f"/jobs/{preparation}/cancel")
    refused = site.http.post("/jobs", json=body({"data": {"dataset": "tales"}})).json()
    assert (refused["code"], refused["job"], refused["request"]["path"]) == (
        "dataset_not_ready",
        preparation,
        f"/jobs/{preparation}/{action}",
    )
    assert site.http.request(refused["request"]["method"], refused["request"]["path"]).status_code == 202
    joined = site.http.post("/jobs", json=body({"data": {"dataset": "tales"}})).json()
    assert joined["waiting_for"] == [preparation]


def test_a_test_of_a_dataset_that_is_being_prepared_names_the_job(site: Site) -> None:
    site.make_run("tiny")
    test = {"experiment_name": "tiny", "execution": {"train": False, "test": True}, "data": {"dataset": "tales"}}
    preparation = site.http.post("/datasets", json={"name": "tales", "source": "stories"}).json()["id"]
    refused = site.http.post("/jobs", json=test).json()
    assert (refused["code"], refused["job"]) == ("dataset_not_ready", preparation)
    taken = site.http.post("/jobs", json={**test, "job": {"depends_on": [preparation]}})
    assert (taken.status_code, taken.json()["waiting_for"]) == (202, [preparation])


def test_a_training_joins_the_preparation_of_an_upload(site: Site) -> None:
    upload = {"name": "tales", "tokenizer": json.dumps(BPE), "split": json.dumps(SPLIT)}
    sent = site.http.post("/datasets", data=upload, files={"files": ("book.txt", b"Once upon a time.\n" * 50)}).json()
    asked = body({"data": {"dataset": "tales"}})
    first, again = (site.http.post("/jobs", json=asked, headers={"Idempotency-Key": "one"}) for _ in range(2))
    assert (first.status_code, again.status_code, first.json()["waiting_for"]) == (202, 200, [sent["id"]])
    site.finish(site.claim())
    site.add_dataset("tales", tokenizer=BPE_NAME, split=SPLIT, source="file:book.txt")
    later = site.http.post("/jobs", json=asked, headers={"Idempotency-Key": "one"})
    assert (later.status_code, later.json()["id"]) == (200, first.json()["id"])


# --- texts that are too short ----------------------------------------------------------------------------------------

# Tokens of the training split, section `training`, processes, and what is wrong with which value that would be right.
SHORT = [
    (64, {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64}, 1, ("/training/batch_size", [1])),
    (200, {"batch_size": 8, "sequence_length": 32, "total_batch_size": 256}, 1, ("/training/batch_size", [4])),
    (200, {"batch_size": 8, "sequence_length": 32, "total_batch_size": 512}, 2, ("/training/batch_size", [2])),
    (200, {"batch_size": 12, "sequence_length": 16, "total_batch_size": 192}, 1, None),
    (65, {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64}, 1, None),
    (32, {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64}, 1, ("/training/sequence_length", [])),
    (1, {"batch_size": 1, "sequence_length": 1, "total_batch_size": 64}, 1, ("/training/sequence_length", [])),
    (0, {"batch_size": 1, "sequence_length": 1, "total_batch_size": 64}, 1, ("/training/sequence_length", [])),
]


@pytest.mark.parametrize(("tokens", "training", "processes", "wrong"), SHORT)
def test_too_few_tokens_for_one_batch_are_known_at_submission(
    site: Site, tokens: int, training: Any, processes: int, wrong: Any
) -> None:
    one = {"documents": 1, "tokens": tokens, "text_bytes": 9, "size_bytes": 528, "sha256": "0" * 64, "dtype": "uint16"}
    splits = {split: {"file": f"tales_{split}.npy", **one} for split in ("train", "val", "test")}
    site.add_dataset("tales", splits=splits)
    resources = {"resources": {"processes": processes}}
    sections = {"data": {"dataset": "tales"}, "training": {**TREE["training"], **training}, "job": resources}
    asked = {**body({"data": {}}), **sections}
    reply = site.http.post("/jobs", json=asked)
    problems = [(item["pointer"], item["nearest"]) for item in reply.json().get("errors", [])]
    assert (reply.status_code, problems) == ((202, []) if wrong is None else (422, [wrong])), reply.text
    checked = site.http.post("/jobs?run=other", json=asked, params={"validate_only": "true"}).json()
    assert ("invalid_config" in [warning["code"] for warning in checked["warnings"]]) == (wrong is not None)


def test_token_files_without_a_manifest_are_counted_too(site: Site) -> None:
    site.add_dataset("foreign")
    training = {**TREE["training"], "batch_size": 8, "total_batch_size": 256}
    reply = site.http.post("/jobs", json=body({"data": {"dataset": "foreign"}, "training": training}))
    assert (reply.status_code, reply.json()["errors"][0]["nearest"]) == (422, [4])


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no file system that never has a free byte")
def test_readyz_says_that_the_disk_is_full() -> None:
    settings = ServiceSettings(data=Path("/proc"), redis_url="unix:///nowhere.sock")
    with pytest.raises(NotReady) as refused:
        asyncio.run(readiness(Services.of(settings)))
    assert refused.value.checks["data"]["detail"].startswith("disk_full")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (f"MISCONF Errors writing to the AOF file: {os.strerror(errno.ENOSPC)}", "disk_full"),
        ("MISCONF Errors writing to the AOF file: Input/output error", "queue_unavailable"),
        ("LOADING Redis is loading the dataset in memory", "queue_unavailable"),
    ],
)
def test_a_queue_whose_disk_is_full_says_so(said: str, code: str) -> None:
    with pytest.raises(QueueUnavailable) as refused, redis_errors():
        raise redis.ResponseError(said)
    assert refused.value.code == code
