"""Datasets over HTTP: made, listed, read and deleted."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from model_core.storage.dataset import EXAMPLES, MANIFEST, save_tokenizer
from model_core.storage.files import write_json
from model_core.tokenizer import train_bpe
from worker.jobs.schemas import JobError, Outcome, WorkerView

BODY = {"name": "tales", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}}
BPE = {"kind": "bpe", "n_vocab": 512, "sha256": "0" * 64, "file": "tokenizer.json", "asked": "bpe:512"}


@pytest.fixture
def ask(site) -> Callable[..., Any]:
    def ask(status: int = 202, **changes: Any) -> dict[str, Any]:
        reply = site.http.post("/datasets", json={**BODY, **changes})
        assert reply.status_code == status, reply.text
        return reply.json()

    return ask


def test_a_dataset_is_made_by_a_job_without_a_run(site, ask) -> None:
    reply = site.http.post("/datasets", json=BODY)
    job = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["run"], job["dataset"], job["links"]["run"]) == ("prepare", None, "tales", None)
    assert (job["links"]["dataset"], job["progress"]["step"]) == ("/datasets/tales", None)
    claim = site.claim()
    assert (claim.run, claim.dataset) == (None, "tales")
    assert claim.config == {
        "data": {"dataset": "tales", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}}
    }
    [listed] = site.http.get("/jobs", params={"kind": "prepare", "dataset": "tales"}).json()["data"]
    assert listed["id"] == job["id"]


def test_yaml_is_read_as_json_is(site) -> None:
    text = "name: tales\nsource: stories\nseed: 7\n"
    reply = site.http.post("/datasets", content=text, headers={"Content-Type": "application/yaml"})
    assert reply.status_code == 202
    assert site.claim().config["device"] == {"seed": 7}


def test_equal_requests_share_one_job_until_the_dataset_is_there(site, ask) -> None:
    made = ask()
    assert ask(200)["id"] == made["id"]
    taken = ask(409, seed=7)
    assert (taken["code"], taken["dataset"], taken["next_free"]) == ("dataset_exists", "tales", "tales-2")
    assert made["id"] in taken["detail"]
    site.finish(site.claim())
    site.add_dataset("tales", tokenizer=BPE)
    ready = site.http.post("/datasets", json=BODY)
    assert (ready.status_code, ready.headers["location"]) == (200, "/datasets/tales")
    assert (ready.json()["object"], ready.json()["state"], ready.json()["job"]) == ("dataset", "ready", made["id"])
    other = ask(409, split=[0.8, 0.1, 0.1])
    assert other["code"] == "dataset_exists"
    assert all(split in other["detail"] for split in ("[0.9, 0.09, 0.01]", "[0.8, 0.1, 0.1]"))
    site.add_dataset("foreign")
    assert ask(409, name="foreign")["code"] == "dataset_exists"


def test_a_repeated_key_gets_its_job_whatever_has_become_of_it(site) -> None:
    key = {"Idempotency-Key": "one"}
    made = site.http.post("/datasets", json=BODY, headers=key).json()
    other = site.http.post("/datasets", json={**BODY, "seed": 7}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    joined = site.http.post("/datasets", json=BODY, headers={"Idempotency-Key": "two"})
    assert (joined.status_code, joined.json()["id"]) == (200, made["id"])
    site.finish(site.claim())
    site.add_dataset("tales", tokenizer=BPE)
    again = [site.http.post("/datasets", json=BODY, headers={"Idempotency-Key": name}) for name in ("one", "two")]
    assert [(reply.status_code, reply.json()["id"]) for reply in again] == [(200, made["id"])] * 2


def test_all_wrong_values_are_named_at_once(site) -> None:
    body = {"name": "../x", "sorce": "stories", "split": [0.5, 0.5, 0.5], "seed": "x", "tokenizer": "gpt3"}
    refused = site.http.post("/datasets", json=body).json()
    assert {error["pointer"] for error in refused["errors"]} >= {"/name", "/sorce", "/source", "/seed", "/tokenizer"}
    assert "source" in next(error["nearest"] for error in refused["errors"] if error["pointer"] == "/sorce")
    assert refused["code"] == "invalid_parameter"
    shares = site.http.post("/datasets", json={**BODY, "split": [0.5, 0.5, 0.5]}).json()
    assert [error["pointer"] for error in shares["errors"]] == ["/split"]
    lost = site.http.post("/datasets", json={**BODY, "source": "file:uploads/none.txt"}).json()
    assert [error["pointer"] for error in lost["errors"]] == ["/source"]
    assert site.http.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["/datasets", "/jobs", "/configs/validate"])
def test_a_token_is_refused_by_name_and_not_repeated(site, path: str) -> None:
    canary = "hf_canaryCanaryCanary"
    bodies = [{**BODY, "hf_token": canary}, {"data": {"token": canary}}, {"job": {"metadata": {"Api-Key": canary}}}]
    refused = [site.http.post(path, json=body) for body in bodies]
    refused.append(site.http.get("/datasets", params={"token": canary}))
    assert {(reply.status_code, reply.json()["code"]) for reply in refused} == {(422, "invalid_parameter")}
    assert all("HF_TOKEN" in reply.json()["detail"] for reply in refused)
    assert all(canary not in reply.text for reply in refused)


def test_a_dataset_reports_how_its_preparation_goes_and_why_it_failed(site, ask) -> None:
    job = ask()
    assert site.http.get("/datasets/tales").json()["state"] == "preparing"
    claim = site.claim()
    told = {"seq": 1, "type": "progress", "time": "", "attempt": 1, "done": 500, "of": 20000, "unit": "documents"}
    site.store.mirror(claim, [told], site.store.get(job["id"]).progress.model_copy(update={"done": 500, "of": 20000}))
    shown = site.http.get("/datasets/tales").json()
    assert (shown["progress"]["done"], shown["progress"]["of"], shown["progress"]["step"]) == (500, 20000, None)
    early = site.http.get("/datasets/tales/statistics")
    assert (early.status_code, early.json()["code"], early.json()["job"]) == (409, "dataset_not_ready", job["id"])
    error = JobError(code="hub_login_required", detail="say who you are", hint="set HF_TOKEN")
    site.store.finish(claim, Outcome("failed", error.detail, error))
    failed = site.http.get("/datasets/tales").json()
    assert (failed["state"], failed["error"]["code"], failed["manifest"]) == ("failed", "hub_login_required", None)
    assert ask(202)["id"] != job["id"]


def test_a_dataset_that_nobody_knows_is_not_found(site) -> None:
    for path in ("", "/statistics", "/examples", "/examples/0"):
        reply = site.http.get(f"/datasets/none{path}")
        assert (reply.status_code, reply.json()["code"]) == (404, "dataset_not_found")
    assert site.http.get("/datasets/..%2fexp").status_code in {404, 422}


def test_statistics_are_the_manifests(site) -> None:
    one = {"documents": 10, "tokens": 200, "text_bytes": 600}
    site.add_dataset("tales", duplicates=3, categories={"child-directed": one})
    found = site.http.get("/datasets/tales/statistics").json()
    assert (found["documents"], found["tokens"], found["tokens_per_document"]) == (30, 600, 20.0)
    assert (found["splits"]["val"]["documents"], found["duplicates"], found["examples"]) == (10, 3, 10)
    assert found["categories"] == {"child-directed": one}
    site.add_dataset("foreign")
    own = site.http.get("/datasets/foreign/statistics").json()
    assert (own["documents"], own["tokens"], own["categories"]) == (None, 600, None)


def test_an_example_shows_where_its_tokens_end(site) -> None:
    dataset = site.add_dataset("tales", tokenizer=BPE)
    tokenizer = train_bpe(["once upon a time"], 260)
    save_tokenizer(dataset.directory / "tokenizer.json", tokenizer)
    text = "once 猫"
    write_json(dataset.directory / EXAMPLES, [{"id": 0, "text": text, "tokens": tokenizer.encode(text)}])
    found = site.http.get("/datasets/tales/examples/0").json()
    assert len(found["pieces"]) == len(found["tokens"])
    assert "".join(piece for piece in found["pieces"] if not piece.startswith("bytes:")) == "once "
    assert found["pieces"][-1] == r"bytes:\xab"


def test_examples_are_read_one_by_one_and_in_pages(site) -> None:
    found = site.http.get("/datasets/words/examples/7").json()
    assert found == {
        "object": "example", "dataset": "words", "id": 7, "text": "text 7", "tokens": [7], "pieces": None,
    }  # fmt: skip
    missing = site.http.get("/datasets/words/examples/10")
    assert (missing.status_code, missing.json()["code"]) == (404, "example_not_found")
    assert "0 to 9" in missing.json()["detail"]
    first = site.http.get("/datasets/words/examples", params={"limit": 6})
    rest = site.http.get(first.links["next"]["url"]).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([6, 7, 8, 9], False)


def test_datasets_are_listed_by_name_in_pages_ready_or_not(site, ask) -> None:
    site.add_dataset("alpha", source="stories")
    (site.layout.datasets / "half").mkdir()
    ask(name="beta")
    first = site.http.get("/datasets", params={"limit": 2})
    assert [(one["name"], one["state"]) for one in first.json()["data"]] == [("alpha", "ready"), ("beta", "preparing")]
    rest = site.http.get(first.links["next"]["url"]).json()
    assert ([one["name"] for one in rest["data"]], rest["has_more"]) == (["words"], False)


def test_a_dataset_is_deleted_unless_a_job_needs_it(site) -> None:
    training = site.submit("tiny")
    busy = site.http.delete("/datasets/words")
    assert (busy.status_code, busy.json()["code"], busy.json()["job"]) == (409, "dataset_busy", training["id"])
    site.finish(site.claim())
    assert site.http.delete("/datasets/words").status_code == 204
    assert list(site.layout.datasets.iterdir()) == []
    assert site.http.delete("/datasets/words").status_code == 404


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_manifest_that_cannot_be_read_hides_no_dataset(site, ask, text: str) -> None:
    (site.layout.datasets / "words" / MANIFEST).write_text(text)
    assert [one["state"] for one in site.http.get("/datasets").json()["data"]] == ["ready"]
    assert site.http.get("/datasets/words").json()["manifest"] is None
    assert site.http.get("/datasets/words/statistics").json()["tokens"] == 600
    assert ask(409, name="words")["code"] == "dataset_exists"


def test_a_training_on_a_manifest_that_cannot_be_read_is_refused_with_its_name(site) -> None:
    (site.settings.data / "datasets" / "words" / "manifest.json").write_text("{")
    tree = {"experiment_name": "x", "data": {"dataset": "words"}, "job": {"preset": "quickstart"}}
    refused = site.http.post("/jobs", json=tree)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_data")
    assert "words/manifest.json" in refused.json()["detail"]


def test_ready_datasets_are_served_without_redis(make_site, tmp_path) -> None:
    site = make_site(f"unix://{tmp_path}/none.sock?db=0")
    assert site.http.get("/datasets/words").json()["state"] == "ready"
    assert site.http.get("/datasets").json()["last_id"] == "words"
    assert site.http.get("/datasets/other").status_code == 503


def test_deleting_a_preparation_with_what_it_made_frees_the_dataset(site, ask) -> None:
    made = ask()
    claim = site.claim()
    dataset = site.add_dataset("tales", tokenizer=BPE)
    assert site.http.delete(f"/jobs/{made['id']}", params={"artifacts": "true"}).status_code == 409
    site.finish(claim)
    tales = {"dataset": "tales", "tokenizer": BODY["tokenizer"]}
    training = {"batch_size": 1, "sequence_length": 32, "total_batch_size": 32, "max_steps": 3, "warmup_steps": 1}
    test = {"data": tales, "experiment_name": "reads", "training": training}
    reader = site.http.post("/jobs", json=test).json()
    needed = site.http.delete(f"/jobs/{made['id']}", params={"artifacts": "true"})
    assert (needed.status_code, needed.json()["code"]) == (409, "dataset_busy")
    site.http.post(f"/jobs/{reader['id']}/cancel")
    assert site.http.delete(f"/jobs/{made['id']}", params={"artifacts": "true"}).status_code == 204
    assert not dataset.directory.exists()


def test_a_dataset_that_a_job_found_ready_is_not_its_to_delete(site, ask) -> None:
    made = ask()
    dataset = site.add_dataset("tales", tokenizer=BPE, created_at="2026-01-01T00:00:00.000Z")
    site.finish(site.claim())
    assert site.http.delete(f"/jobs/{made['id']}", params={"artifacts": "true"}).status_code == 204
    assert (dataset.directory / MANIFEST).is_file()


def test_a_preparation_can_be_submitted_as_a_job_too(site) -> None:
    body = {"job": {"kind": "prepare", "metadata": {"why": "text"}}, "data": {"dataset": "tales", "source": "stories"}}
    checked = site.http.post("/jobs", json=body, params={"validate_only": "true"}).json()
    assert (checked["kind"], checked["run"], checked["dataset"], checked["budget"]) == ("prepare", None, "tales", None)
    job = site.http.post("/jobs", json=body).json()
    assert (job["kind"], job["dataset"], job["metadata"]) == ("prepare", "tales", {"why": "text"})
    nothing = site.http.post("/jobs", json={"job": {"kind": "prepare", "resources": {"gpus": 1}}})
    assert {error["pointer"] for error in nothing.json()["errors"]} == {"/data/source", "/job/resources/gpus"}
    assert site.http.post("/jobs?run=x", json=body).json()["code"] == "invalid_parameter"


def test_a_preparation_is_paused_resumed_cancelled_and_retried(site, ask) -> None:
    job = ask()
    here = f"/jobs/{job['id']}"
    assert site.http.post(f"{here}/pause").json()["status"] == "paused"
    assert ask(200)["id"] == job["id"]  # it keeps its name
    assert site.http.post(f"{here}/resume").json()["status"] == "queued"
    claim = site.store.claim("again", WorkerView(id="w1", host="here"))
    site.store.finish(claim, Outcome("failed", "no", JobError(code="hub_unreachable", detail="no")))
    assert site.http.post(f"{here}/retry", params={"from": "scratch"}).json()["status"] == "queued"
    assert site.http.post(f"{here}/cancel").json()["status"] == "cancelled"
    assert site.http.get("/datasets/tales").json()["state"] == "cancelled"
    other = ask(seed=7)
    kept = site.http.post(f"{here}/resume")
    assert (kept.status_code, kept.json()["code"]) == (409, "dataset_exists")
    assert json.loads(site.http.get(f"/jobs/{other['id']}").text)["status"] == "queued"
