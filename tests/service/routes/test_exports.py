"""Exports over HTTP: one job for equal requests, the folder, and its deletion."""

from typing import Any

import pytest

from model_core.storage.files import write_json
from model_core.storage.run import Run

PLACE = "/runs/tiny/exports"
TREE = {"experiment_name": "tiny", "job": {"kind": "export"}}
FREE = {"artifacts": "true"}


@pytest.fixture
def run(site: Any) -> Run:
    """A run with a best checkpoint."""
    made: Run = site.make_run("tiny")
    return made


def end(site: Any, run: Run) -> None:
    """Finish the first job as its process would: it has an outcome."""
    claim = site.claim()
    facts = {"checkpoint": "model_best.pt", "sha256": run.resolve("best").sha256}
    write_json(site.layout.jobs / claim.id / "outcome.json", {"attempt": claim.attempt, "error": None, **facts})
    site.finish(claim)


def code_of(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def test_whoever_asks_gets_the_one_job_and_then_the_export(site: Any, run: Run) -> None:
    asked = site.http.post(PLACE)
    job = asked.json()
    assert (asked.status_code, asked.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["run"], job["dataset"], job["progress"]["step"]) == ("export", "tiny", None, None)
    again = [
        site.http.post(PLACE, json={"checkpoint": "model_best.pt"}),
        site.http.post("/jobs", json=TREE),
        site.http.post(PLACE, content="checkpoint: best", headers={"Content-Type": "application/yaml"}),
    ]
    assert [(reply.status_code, reply.json()["id"]) for reply in again] == [(200, job["id"])] * 3
    assert site.http.get(PLACE).json()["data"] == []

    folder = site.add_export(run)
    end(site, run)
    there = site.http.post(PLACE, json={"checkpoint": "best"})
    assert (there.status_code, there.headers["location"]) == (200, PLACE)
    sha256 = run.resolve("best").sha256
    assert there.json() == {
        "object": "export", "name": folder.name, "run": "tiny", "checkpoint": "model_best.pt", "sha256": sha256,
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()), "created_at": there.json()["created_at"],
        "licence": None,
        "links": {
            "run": "/runs/tiny", "safetensors": "/runs/tiny/checkpoints/model_best.pt/content?format=safetensors",
        },
    }  # fmt: skip
    assert site.http.get(there.json()["links"]["safetensors"]).content == (folder / "model.safetensors").read_bytes()
    assert site.http.get(PLACE).json()["data"] == [there.json()]
    assert [job["kind"] for job in site.http.get("/jobs", params={"run": "tiny"}).json()["data"]] == ["export"]


def test_another_checkpoint_under_the_name_is_another_export(site: Any, run: Run) -> None:
    site.add_export(run)
    site.publish(run, b"other weights")
    [stale] = site.http.get(PLACE).json()["data"]
    assert (stale["checkpoint"], stale["sha256"], stale["links"]["safetensors"]) == ("model_best.pt", None, None)
    assert site.http.post(PLACE).status_code == 202


def test_what_cannot_be_exported_is_refused(site: Any, run: Run) -> None:
    site.make_run("empty", checkpoint=None)
    assert code_of(site.http.post("/runs/nowhere/exports")) == (404, "run_not_found")
    assert code_of(site.http.get("/runs/nowhere/exports")) == (404, "run_not_found")
    assert code_of(site.http.post(PLACE, json={"checkpoint": "step=7"})) == (404, "checkpoint_not_found")
    assert code_of(site.http.post("/runs/empty/exports")) == (409, "checkpoint_not_ready")
    assert code_of(site.http.post("/jobs", json={**TREE, "experiment_name": "nowhere"})) == (404, "run_not_found")
    wrong = site.http.post(PLACE, json={"checkpoint": 3, "licence": "M I T", "folder": "/"})
    assert {error["pointer"] for error in wrong.json()["errors"]} == {"/checkpoint", "/licence", "/folder"}
    trains = site.http.post("/jobs", json={**TREE, "job": {"licence": "mit"}})
    assert [error["pointer"] for error in trains.json()["errors"]] == ["/job/licence"]
    assert site.http.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_export_that_lacks_a_file_is_none_and_goes_with_its_job(site: Any, run: Run, lost: str) -> None:
    job = site.http.post(PLACE).json()["id"]
    folder = site.add_export(run)
    end(site, run)
    (folder / lost).unlink()
    content = site.http.get("/runs/tiny/checkpoints/best/content", params={"format": "safetensors"})
    assert code_of(content) == (422, "not_available")
    assert site.http.get(PLACE).json()["data"] == []
    again = site.http.post(PLACE)
    assert again.status_code == 202
    assert site.http.post(f"/jobs/{again.json()['id']}/cancel").json()["status"] == "cancelled"
    assert site.http.delete(f"/jobs/{job}", params=FREE).status_code == 204
    assert not folder.exists()


def test_a_key_that_was_used_gets_its_job_also_when_the_export_is_there(site: Any, run: Run) -> None:
    key = {"Idempotency-Key": "one"}
    job = site.http.post(PLACE, headers=key).json()["id"]
    site.add_export(run)
    end(site, run)
    repeated = site.http.post(PLACE, headers=key)
    assert (repeated.status_code, repeated.json()["id"]) == (200, job)
    other = site.http.post(PLACE, json={"checkpoint": "final"}, headers=key)
    assert code_of(other) == (422, "idempotency_conflict")


def test_another_licence_is_another_job_and_then_the_export_states_it(site: Any, run: Run) -> None:
    plain, licensed, again = [
        site.http.post(PLACE, json=wanted).json()["id"] for wanted in ({}, {"licence": "mit"}, {"licence": "mit"})
    ]
    assert plain != licensed == again
    folder = site.add_export(run)
    end(site, run)
    assert site.http.post(PLACE, json={"licence": "mit"}).json()["id"] == licensed
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    end(site, run)

    there = [site.http.post(PLACE, json=wanted) for wanted in ({}, {"licence": "mit"}, {"licence": "apache-2.0"})]

    assert [reply.status_code for reply in there] == [200, 200, 202]
    assert [reply.json()["licence"] for reply in there[:2]] == ["mit", "mit"]


def test_an_export_may_wait_for_the_training_that_makes_its_run(site: Any) -> None:
    training = site.submit("tiny")["id"]
    waits = site.http.post("/jobs", json={**TREE, "job": {"kind": "export", "depends_on": [training]}})
    assert (waits.status_code, waits.json()["waiting_for"]) == (202, [training])


def test_deleting_frees_the_export_that_the_job_made_and_no_other(site: Any, run: Run) -> None:
    maker = site.http.post(PLACE).json()["id"]
    claim = site.claim()
    folder = site.add_export(run)
    facts = {"checkpoint": "model_best.pt", "sha256": run.resolve("best").sha256}
    write_json(site.layout.jobs / maker / "outcome.json", facts)
    site.finish(claim)
    finder = site.http.post("/jobs", json=TREE).json()["id"]
    busy = site.http.delete(f"/jobs/{maker}", params=FREE)
    assert code_of(busy) == (409, "run_busy")
    end(site, run)
    assert site.http.delete(f"/jobs/{finder}", params=FREE).status_code == 204
    assert folder.is_dir()
    assert site.http.delete(f"/jobs/{maker}", params=FREE).status_code == 204
    assert [path.name for path in folder.parent.iterdir() if path.name != ".lock"] == []
    assert list(site.layout.jobs.iterdir()) == []
    assert run.resolve("best").step == 3
