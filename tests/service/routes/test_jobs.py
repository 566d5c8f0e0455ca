"""Submission, listing and details of jobs."""

import copy
import json
import shutil
from typing import Any

import httpx
import pytest
import yaml

from model_core.storage.run import Run

TREE: dict[str, Any] = {
    "experiment_name": "tiny",
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": [4, 2], "vocab_size": 512, "block_size": 64},
    "training": {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "max_steps": 3, "warmup_steps": 1},
    "data": {"dataset": "words", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}},
}


def named(name: str, **sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TREE), "experiment_name": name, **sections}


def test_yaml_and_json_make_the_same_job(site) -> None:
    key = {"Idempotency-Key": "one"}
    first = site.http.post("/jobs", json=TREE, headers=key)
    text = "# the same\n" + yaml.safe_dump(TREE)
    again = site.http.post("/jobs", content=text, headers={**key, "Content-Type": "application/yaml"})

    assert (first.status_code, again.status_code) == (202, 200)
    job = first.json()
    assert again.json()["id"] == job["id"]
    assert first.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    seen = site.http.get(first.headers["location"]).json()
    config = seen.pop("config")
    assert (config["model"]["n_head_list"], config["experiment_name"]) == ([4, 2], "tiny")
    assert seen == job | {"attempts": [], "depends_on": [], "gpus": None, "waiting_on": []}
    assert (job["object"], job["kind"], job["run"], job["status"]) == ("job", "train", "tiny", "queued")
    assert job["queue"] == {"position": 1, "jobs_ahead": 0, "eta_s": None}
    assert job["history"][0] | {"time": None} == {"time": None, "from": None, "to": "queued", "reason": "submitted"}
    assert set(job["links"]) == {"self", "events", "logs", "metrics", "run", "dataset", "cancel"}


def test_a_key_belongs_to_one_body(site) -> None:
    key = {"Idempotency-Key": "one"}
    made = site.http.post("/jobs", json=TREE, headers=key).json()["id"]
    other = site.http.post("/jobs", json=named("other"), headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert other.json()["job"] == made


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_1_to_255_characters(site, key: str) -> None:
    refused = site.http.post("/jobs", json=TREE, headers={"Idempotency-Key": key})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
    assert refused.json()["errors"][0]["pointer"] == "/Idempotency-Key"
    assert str(len(key)) in refused.json()["errors"][0]["detail"]


def test_a_repeated_key_gets_its_job_also_when_the_run_exists_by_now(site) -> None:
    key = {"Idempotency-Key": "one"}
    made = site.http.post("/jobs", json=TREE, headers=key).json()["id"]
    site.make_run("tiny", job_id=made)
    again = site.http.post("/jobs", json=TREE, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, made)


def test_a_repeated_key_gets_its_job_also_when_it_would_be_refused_by_now(site) -> None:
    site.make_run("first")
    body, key = named("next", checkpoint={"load_checkpoint": "first"}), {"Idempotency-Key": "one"}
    made = site.http.post("/jobs", json=body, headers=key).json()["id"]
    shutil.rmtree(site.layout.run("first"))
    again = site.http.post("/jobs", json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, made)
    assert site.http.post("/jobs", json=body).json()["code"] == "run_not_found"


def test_a_run_that_exists_is_refused_with_the_next_free_name(site) -> None:
    site.make_run("tiny")
    site.submit("tiny-2")
    taken = site.http.post("/jobs", json=TREE)
    assert (taken.status_code, taken.json()["code"]) == (409, "run_exists")
    assert taken.json()["next_free"] == "tiny-3"
    assert "run=tiny-3" in taken.json()["hint"]

    renamed = site.http.post("/jobs", json=TREE, params={"run": "tiny-3"})
    assert (renamed.status_code, renamed.json()["run"]) == (202, "tiny-3")


def test_validate_only_answers_the_budget_and_makes_nothing(site) -> None:
    reply = site.http.post("/jobs", json=named("x", output={"exp_dir": "/elsewhere"}), params={"validate_only": "true"})
    assert reply.status_code == 200
    found = reply.json()
    assert (found["object"], found["run"]) == ("validation", "x")
    assert found["budget"]["parameters"] > 0
    assert [layer["n_head"] for layer in found["budget"]["layers"]] == [4, 2]
    assert "paths_replaced" in {warning["code"] for warning in found["warnings"]}
    assert site.http.get("/jobs").json()["data"] == []


def test_validate_only_warns_of_what_would_refuse_a_submission(site) -> None:
    site.make_run("tiny")
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 1 << 20}, 60)
    reply = site.http.post("/jobs", json=TREE, params={"validate_only": "true"})
    assert reply.status_code == 200
    assert {"run_exists", "does_not_fit"} <= {warning["code"] for warning in reply.json()["warnings"]}


def test_a_model_that_no_known_worker_can_hold_is_refused_with_what_would_fit(site) -> None:
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 4 << 30}, 60)
    huge = named("huge", model={"n_layer": 96, "n_embd": 12288, "n_head": 96, "vocab_size": 512, "block_size": 64})
    refused = site.http.post("/jobs", json=huge)
    assert (refused.status_code, refused.json()["code"]) == (422, "does_not_fit")
    assert "4.0 GiB" in refused.json()["detail"]

    training = {"batch_size": 65536, "sequence_length": 64, "total_batch_size": 4194304}
    wide = named("wide", training=training, data={**TREE["data"], "dataset": "of-any-size"})
    assert "batch_size" in site.http.post("/jobs", json=wide).json()["hint"]


def test_a_test_needs_a_run_with_that_checkpoint_and_model(site) -> None:
    test = {"experiment_name": "tiny", "execution": {"train": False, "test": True}}
    codes = [site.http.post("/jobs", json=test).json()["code"]]
    run = site.make_run("tiny", checkpoint=None)
    codes.append(site.http.post("/jobs", json=test).json()["code"])
    site.publish(run, b"weights")
    codes.append(site.http.post("/jobs", json={**test, "testing": {"checkpoint_path": "step=9"}}).json()["code"])
    other = site.http.post("/jobs", json={**test, "model": {"n_layer": 6}})
    codes.append(other.json()["code"])
    assert codes == ["run_not_found", "checkpoint_not_ready", "checkpoint_not_found", "checkpoint_mismatch"]
    assert "n_layer" in other.json()["detail"]

    made = site.http.post("/jobs", json=test)
    assert (made.status_code, made.json()["kind"]) == (202, "test")


def test_a_test_is_not_measured_by_the_training_it_never_does(site) -> None:
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 8 << 30}, 60)
    site.make_run("tiny")
    test = {"experiment_name": "tiny", "execution": {"train": False, "test": True}}  # the rest is GPT-2's defaults
    assert (
        site.http.post("/jobs", json={"experiment_name": "big", "data": {"source": "stories"}}).json()["code"]
        == "does_not_fit"
    )
    assert site.http.post("/jobs", json=test).status_code == 202


def test_a_source_that_no_name_can_be_is_refused(site) -> None:
    for source in ("file:uploads/a\0b", "file:uploads/\ud800", "hub:a/\udfff"):
        body = json.dumps(named("x", data={**TREE["data"], "source": source}))
        reply = site.http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/data/source")


def test_a_training_can_begin_with_another_run_but_not_with_a_path(site) -> None:
    site.make_run("first")
    fine = site.http.post("/jobs", json=named("next", checkpoint={"load_checkpoint": "first/model_best.pt"}))
    assert fine.status_code == 202
    same = {**TREE["model"], "dropout": 0.1}  # of the same shape
    assert site.http.post("/jobs", json=named("same", model=same, checkpoint={"load_checkpoint": "first"})).is_success
    other = {**TREE["model"], "block_size": 128}
    refused = site.http.post("/jobs", json=named("other", model=other, checkpoint={"load_checkpoint": "first"}))
    assert (refused.status_code, refused.json()["code"]) == (422, "checkpoint_mismatch")
    assert all(value in refused.json()["detail"] for value in ("model.block_size", "128", "64"))
    missing = site.http.post("/jobs", json=named("lost", checkpoint={"load_checkpoint": "nowhere"}))
    assert missing.json()["code"] == "run_not_found"
    path = site.http.post("/jobs", json=named("path", checkpoint={"load_checkpoint": "/etc/passwd"}))
    assert path.status_code == 422
    assert path.json()["errors"][0]["pointer"] == "/checkpoint/load_checkpoint"


def test_data_that_nobody_can_make_is_refused(site) -> None:
    refused = site.http.post("/jobs", json=named("bare", data={"tokenizer": TREE["data"]["tokenizer"]}))
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_not_ready")
    assert "babylm_train.npy" in refused.json()["detail"]


def test_jobs_are_listed_newest_first_in_pages_that_link_on(site) -> None:
    names = [f"run-{i}" for i in range(5)]
    ids = [site.submit(name)["id"] for name in names]
    first = site.http.get("/jobs", params={"limit": 2})
    assert [job["id"] for job in first.json()["data"]] == ids[:2:-1]
    assert first.json()["has_more"]
    second = site.http.get(first.links["next"]["url"]).json()
    assert [job["run"] for job in second["data"]] == names[2:0:-1]
    last = site.http.get("/jobs", params={"after": second["last_id"]}).json()
    assert ([job["run"] for job in last["data"]], last["has_more"]) == (["run-0"], False)

    one = site.http.get("/jobs", params={"run": "run-3", "status": "queued", "kind": "train"}).json()
    assert [job["id"] for job in one["data"]] == [ids[3]]


def test_cancelling_is_repeatable_and_refused_when_it_is_over(site) -> None:
    job = site.submit("tiny")
    cancelled = [site.http.post(job["links"]["cancel"]) for _ in range(2)]
    assert [(reply.status_code, reply.json()["status"]) for reply in cancelled] == [
        (202, "cancelled"),
        (200, "cancelled"),
    ]

    site.submit("again")
    claim = site.claim()
    site.finish(claim)
    over = site.http.post(f"/jobs/{claim.id}/cancel")
    assert (over.status_code, over.json()["code"]) == (409, "action_not_allowed")
    assert (over.json()["job_status"], over.json()["allowed_actions"]) == ("succeeded", ["delete"])


def test_events_are_a_list_by_default(site) -> None:
    job = site.submit("tiny")
    assert site.http.get(job["links"]["events"]).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    writer = site.writer(site.claim())
    losses = [1 / 3, float("nan"), 2.5e-8]
    for step, loss in enumerate(losses):
        writer.append("step", step=step, loss=loss)
    writer.close()
    page = site.http.get(job["links"]["events"], params={"limit": 2}).json()
    assert ([event["seq"] for event in page["data"]], page["last_id"], page["has_more"]) == ([1, 2], 2, True)
    assert [event["loss"] for event in page["data"]] == [1 / 3, "nan"]
    rest = site.http.get(job["links"]["events"], params={"after": page["last_id"]}).json()
    assert [event["loss"] for event in rest["data"]] == [2.5e-8]


def test_the_log_is_text_whole_or_from_its_end(site) -> None:
    job = site.submit("tiny")
    assert site.http.get(job["links"]["logs"]).text == ""
    printed = site.layout.jobs / job["id"] / "child.log"
    printed.parent.mkdir(parents=True)
    printed.write_text("loading\n")
    assert site.http.get(job["links"]["logs"]).text == "loading\n"

    site.writer(site.claim()).close()
    log = Run(site.layout.run("tiny")).log
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    whole = site.http.get(job["links"]["logs"])
    assert (whole.text, whole.headers["content-type"]) == ("one\ntwo\nthree\n", "text/plain; charset=utf-8")
    assert site.http.get(job["links"]["logs"], params={"tail": 2}).text == "two\nthree\n"


def test_a_job_does_not_send_the_events_of_another_that_took_its_run(site) -> None:
    first = site.submit("tiny")
    site.http.post(first["links"]["cancel"])
    second = site.submit("tiny")
    writer = site.writer(site.claim())
    writer.append("step", step=0)
    writer.close()
    assert site.http.get(second["links"]["events"]).json()["last_id"] == 1
    assert site.http.get(first["links"]["events"]).json()["data"] == []


@pytest.mark.parametrize("path", ["", "/events", "/logs"])
def test_an_unknown_job_is_not_found(site, path: str) -> None:
    reply: httpx.Response = site.http.get(f"/jobs/job_0{path}", headers={"Accept": "*/*"})
    assert (reply.status_code, reply.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("suffix", [":history", ":events", "%00", "%0A"])
def test_what_only_begins_like_a_job_is_not_found(site, suffix: str) -> None:
    here = f"{site.submit('tiny')['links']['self']}{suffix}"
    asked = [site.http.get(here), site.http.post(f"{here}/cancel"), site.http.get(f"/jobs?after={here[6:]}")]
    assert [(reply.status_code, reply.json()["code"]) for reply in asked] == [(404, "job_not_found")] * 3


def test_a_kind_that_is_none_names_the_nearest(site) -> None:
    reply = site.http.get("/jobs", params={"kind": "trian"})
    assert reply.status_code == 422
    (error,) = reply.json()["errors"]
    assert (error["pointer"], error["nearest"][0]) == ("/kind", "train")


def test_a_list_shows_each_job_as_a_look_at_it_does(site) -> None:
    ended, first, second = site.submit("ended"), site.submit("first"), site.submit("second")
    site.http.post(ended["links"]["cancel"])
    listed, again = (site.http.get("/jobs").json()["data"] for _ in range(2))  # again: what has not changed is known
    looks = [site.http.get(job["links"]["self"]).json() for job in (second, first, ended)]
    assert listed == again == [{key: look[key] for key in job} for job, look in zip(listed, looks, strict=True)]
    assert [job["queue"] and job["queue"]["position"] for job in listed] == [2, 1, None]


def test_a_list_that_did_not_change_is_not_sent_again(site) -> None:
    site.submit("tiny")
    site.make_run("by-hand")
    for address in ("/jobs", "/runs", "/datasets", "/configs"):
        tag = site.http.get(address).headers["etag"]
        assert site.http.get(address, headers={"If-None-Match": tag}).status_code == 304
    tag = site.http.get("/jobs").headers["etag"]
    site.submit("other")
    assert site.http.get("/jobs", headers={"If-None-Match": tag}).status_code == 200


def test_a_job_shows_its_effective_configuration_and_what_it_waits_for(site) -> None:
    first = site.submit("first")
    second = site.submit("second", job={"depends_on": [first["id"]]})
    job = site.http.get(f"/jobs/{second['id']}").json()
    assert (job["config"]["model"]["n_head_list"], job["config"]["training"]["grad_clip"]) == ([4, 2], 1.0)
    awaited = {"job": first["id"], "kind": "train", "name": "first", "status": "queued", "eta_s": None}
    assert (job["waiting_on"], job["queue"]) == ([awaited], None)
    assert site.http.get(f"/jobs/{first['id']}").json()["waiting_on"] == []
