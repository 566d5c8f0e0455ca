"""Jobs whose dataset is missing: they wait for its preparation, or are refused with the request that makes it."""

from typing import Any

import pytest

from worker.jobs.schemas import JobError, Outcome

TOKENIZER = {"type": "bpe", "vocab_size": 512}


def tree(**data: Any) -> dict[str, Any]:
    return {
        "experiment_name": "learns",
        "training": {"max_steps": 3, "warmup_steps": 1, "batch_size": 1, "sequence_length": 64, "total_batch_size": 64},
        "data": {"dataset": "tales", "source": "stories", **data},
    }


def test_a_training_waits_for_the_preparation_that_it_needs(site) -> None:
    checked = site.http.post("/jobs", json=tree(), params={"validate_only": "true"}).json()
    assert "dataset_made_first" in [warning["code"] for warning in checked["warnings"]]
    assert site.http.get("/jobs").json()["data"] == []

    training = site.http.post("/jobs", json=tree(), headers={"Idempotency-Key": "one"}).json()
    [preparation] = site.http.get("/jobs", params={"kind": "prepare"}).json()["data"]
    assert (training["waiting_for"], training["dataset"]) == ([preparation["id"]], "tales")
    assert "dataset_made_first" in [warning["code"] for warning in training["warnings"]]
    again = site.http.post("/jobs", json=tree(), headers={"Idempotency-Key": "one"}).json()
    second = site.http.post("/jobs", json=tree(), params={"run": "second"}).json()
    asked = site.http.post("/datasets", json={"name": "tales", "source": "stories"}).json()
    assert (again["id"], second["waiting_for"], asked["id"]) == (training["id"], [preparation["id"]], preparation["id"])
    assert len(site.http.get("/jobs").json()["data"]) == 3

    claim = site.claim()
    assert (claim.kind, claim.id) == ("prepare", preparation["id"])
    site.finish(claim)
    assert site.http.get(f"/jobs/{training['id']}").json()["waiting_for"] == []


def test_a_training_fails_with_the_reason_of_its_preparation(site) -> None:
    training = site.http.post("/jobs", json=tree()).json()
    error = JobError(code="hub_terms_not_accepted", detail="accept the terms first")
    site.store.finish(site.claim(), Outcome("failed", error.detail, error))
    failed = site.http.get(f"/jobs/{training['id']}").json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "dependency_failed")
    assert "accept the terms first" in failed["error"]["detail"]


def test_a_training_that_is_refused_makes_no_preparation(site) -> None:
    site.make_run("learns")
    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 1 << 20}, 60)
    unknown = {"depends_on": [f"job_{'0' * 32}"]}
    refused = [
        site.http.post("/jobs", json=tree()),
        site.http.post("/jobs?run=other", json=tree(source="file:uploads/none.txt")),
        site.http.post("/jobs?run=other", json={**tree(), "job": unknown}),
    ]
    assert [reply.status_code for reply in refused] == [422, 422, 422]
    site.registry.deregister("workers", "w1")
    assert site.http.post("/jobs", json=tree()).json()["code"] == "run_exists"
    assert site.http.post("/jobs?run=other", json={**tree(), "job": unknown}).status_code == 422
    assert site.http.get("/jobs").json()["data"] == []


def test_a_training_of_other_data_under_that_name_is_refused_while_it_is_made(site) -> None:
    site.http.post("/datasets", json={"name": "tales", "source": "stories", "seed": 7})
    refused = site.http.post("/jobs", json=tree())
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_exists")


@pytest.mark.parametrize(
    ("data", "there", "asked"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer 'bpe:512'", "'gpt2'"),
        ({"source": None, "tokenizer": {"type": "bpe", "vocab_size": 300}}, "tokenizer 'bpe:512'", "'bpe:300'"),
        ({"source": "pydoc"}, "source 'stories'", "'pydoc'"),
        ({"split": [0.8, 0.1, 0.1]}, "split [0.9, 0.09, 0.01]", "[0.8, 0.1, 0.1]"),
        ({"dedupe": True}, "dedupe false", "true"),
    ],
)
def test_a_training_that_would_refuse_the_data_under_that_name_is_not_taken(site, data, there, asked) -> None:
    site.add_dataset("words-2")
    body = tree(**{"dataset": "words", "tokenizer": TOKENIZER, **data})
    refused = site.http.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_exists")
    assert refused.json()["next_free"] == "words-3"
    assert all(value in refused.json()["detail"] for value in (there, asked))
    checked = site.http.post("/jobs", json=body, params={"validate_only": "true"}).json()
    assert "dataset_exists" in [warning["code"] for warning in checked["warnings"]]
    assert site.http.get("/jobs").json()["data"] == []


def test_tokens_that_nobody_recorded_are_taken_for_gpt_2s(site) -> None:
    site.add_dataset("foreign")
    taken = site.http.post("/jobs", json=tree(dataset="foreign", source=None))
    refused = site.http.post("/jobs?run=other", json=tree(dataset="foreign", source=None, tokenizer=TOKENIZER))
    assert (taken.status_code, refused.status_code) == (202, 409)
    assert "manifest.json" in refused.json()["detail"]


def test_whether_a_local_file_is_still_the_same_is_left_to_the_job(site, monkeypatch) -> None:
    monkeypatch.chdir(site.settings.data)  # where it would be found, if anybody read it
    uploads = site.settings.data / "uploads"
    uploads.mkdir()
    (uploads / "tales.txt").write_text("It was changed since.")
    site.add_dataset("mine", source="file:tales.txt", revision="0" * 64)
    same, other = (tree(dataset="mine", source=f"file:uploads/{name}.txt") for name in ("tales", "others"))
    assert site.http.post("/jobs", json=same).status_code == 202
    refused = site.http.post("/jobs?run=other", json=other).json()
    assert all(source in refused["detail"] for source in ("'file:tales.txt'", "'file:others.txt'"))


def test_a_test_of_data_that_its_run_cannot_read_is_not_taken(site) -> None:
    site.make_run("tiny")
    test = {"experiment_name": "tiny", "execution": {"train": False, "test": True}, "data": {"dataset": "words"}}
    assert site.http.post("/jobs", json=test).json()["code"] == "dataset_exists"


def test_data_that_no_source_is_known_of_comes_with_the_request_that_makes_it(site) -> None:
    refused = site.http.post("/jobs", json=tree(source=None, tokenizer=TOKENIZER))
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_not_ready")
    request = refused.json()["request"]
    assert request["body"] == {"name": "tales", "source": "stories", "tokenizer": TOKENIZER}
    assert site.http.request(request["method"], request["path"], json=request["body"]).status_code == 202


def test_a_test_and_a_look_at_missing_data_come_with_that_request_too(site) -> None:
    site.make_run("tiny")
    site.add_host()
    assert site.http.delete("/datasets/words").status_code == 204
    test = {"experiment_name": "tiny", "execution": {"train": False, "test": True}}
    refused = [site.http.post("/jobs", json=test), site.http.get("/attention/tiny/0")]
    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(409, "dataset_not_ready")] * 2
    bodies = [reply.json()["request"]["body"] for reply in refused]
    assert bodies == [{"name": "words", "source": "stories", "tokenizer": TOKENIZER}] * 2
