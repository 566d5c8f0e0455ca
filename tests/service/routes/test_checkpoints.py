"""Checkpoints over HTTP: content, ranges, pins and deletion."""

from typing import Any

import pytest

from model_core.storage.files import write_json
from model_core.storage.run import Run

PLACE = "/runs/tiny/checkpoints"
BYTES = bytes(range(256)) * 8


def publish(run: Run, file: str, step: int, *, full: bool = True) -> None:
    facts = {"attempt": 1, "step": step, "full": full, "loss": None, "val_loss": None}
    run.publish(file, lambda f: f.write(BYTES), **facts)


@pytest.fixture
def run(site: Any) -> Run:
    """Weights and two full states."""
    made: Run = site.make_run("tiny", checkpoint=BYTES)
    publish(made, "model_00005.pt", 5)
    publish(made, "model_00010.pt", 10)
    return made


def code_of(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def test_checkpoints_are_listed_by_step_and_read_one_by_one(site: Any, run: Run) -> None:
    listed = site.http.get(PLACE).json()
    assert [(c["file"], c["full"], c["pinned"]) for c in listed["data"]] == [
        ("model_best.pt", False, False), ("model_00005.pt", True, False), ("model_00010.pt", True, False),
    ]  # fmt: skip
    assert (listed["object"], listed["has_more"]) == ("list", False)
    for wanted, index in (("best", 0), ("step=5", 1), ("model_00010.pt", 2)):
        assert site.http.get(f"{PLACE}/{wanted}").json() == listed["data"][index]
    assert site.http.get("/runs/tiny").json()["checkpoints"] == listed["data"]


def test_content_is_the_file(site: Any, run: Run) -> None:
    reply = site.http.get(f"{PLACE}/best/content")
    assert (reply.status_code, reply.content) == (200, BYTES)
    assert reply.headers["content-disposition"] == 'attachment; filename="tiny-model_best.pt"'
    head = site.http.head(f"{PLACE}/best/content")
    assert (head.headers["content-length"], head.headers["etag"]) == (str(len(BYTES)), reply.headers["etag"])


def test_a_download_goes_on_where_it_broke_off_unless_the_file_was_replaced(site: Any, run: Run) -> None:
    tag = site.http.get(f"{PLACE}/best/content").headers["etag"]
    rest = {"Range": "bytes=1000-", "If-Range": tag}
    part = site.http.get(f"{PLACE}/best/content", headers=rest)
    assert (part.status_code, part.content) == (206, BYTES[1000:])
    assert part.headers["content-range"] == f"bytes 1000-{len(BYTES) - 1}/{len(BYTES)}"
    site.publish(run, BYTES[::-1])
    whole = site.http.get(f"{PLACE}/best/content", headers=rest)
    assert (whole.status_code, whole.content) == (200, BYTES[::-1])
    beyond = site.http.get(f"{PLACE}/best/content", headers={"Range": "bytes=9999-"})
    assert code_of(beyond) == (416, "range_not_satisfiable")


def test_safetensors_are_those_of_the_export(site: Any, run: Run) -> None:
    refused = site.http.get(f"{PLACE}/best/content", params={"format": "safetensors"})
    assert code_of(refused) == (422, "not_available")
    assert all(
        part in refused.json()["detail"] for part in ("POST /runs/tiny/exports", '{"checkpoint": "model_best.pt"}')
    )
    tensors = site.add_export(run) / "model.safetensors"
    served = site.http.get(f"{PLACE}/best/content", params={"format": "safetensors"})
    assert (served.status_code, served.content) == (200, tensors.read_bytes())
    assert "tiny-model_best.safetensors" in served.headers["content-disposition"]
    site.publish(run, b"other weights")
    stale = site.http.get(f"{PLACE}/best/content", params={"format": "safetensors"})
    assert code_of(stale) == (422, "not_available")


def test_a_pinned_checkpoint_is_kept_until_the_pin_is_gone(site: Any, run: Run) -> None:
    assert [site.http.put(f"{PLACE}/step=5/pin").json()["pinned"] for _ in range(2)] == [True, True]
    kept = site.http.delete(f"{PLACE}/step=5")
    assert code_of(kept) == (409, "action_not_allowed")
    assert site.http.delete(f"{PLACE}/step=5/pin").json()["pinned"] is False
    assert site.http.delete(f"{PLACE}/step=5").status_code == 204
    assert not list(run.path.glob("model_00005.*"))
    assert code_of(site.http.delete(f"{PLACE}/step=5")) == (404, "checkpoint_not_found")


def test_a_run_that_is_not_over_keeps_the_state_it_goes_on_from(site: Any) -> None:
    job = site.submit("tiny")
    claim = site.claim()
    run = site.make_run("tiny", job_id=job["id"])
    publish(run, "model_00005.pt", 5)
    publish(run, "model_latest.pt", 8)
    for needed in ("latest", "best"):
        assert code_of(site.http.delete(f"{PLACE}/{needed}")) == (409, "action_not_allowed")
    assert site.http.delete(f"{PLACE}/step=5").status_code == 204
    site.finish(claim, "failed")
    with run.lock():
        assert code_of(site.http.delete(f"{PLACE}/latest")) == (409, "run_busy")
    assert site.http.delete(f"{PLACE}/latest").status_code == 204
    assert [info.file for info in run.checkpoints()] == ["model_best.pt"]


@pytest.mark.parametrize(("outcome", "status"), [("succeeded", 204), ("failed", 204), ("stopped", 409)])
def test_by_hand_the_last_attempt_says_whether_a_run_is_over(site: Any, run: Run, outcome: str, status: int) -> None:
    write_json(run.path / "outcome.json", {"attempt": 1, "outcome": outcome, "error": None})
    assert site.http.delete(f"{PLACE}/step=10").status_code == status


@pytest.mark.parametrize("path", ["", "/best", "/best/content"])
def test_an_unknown_run_and_an_unknown_checkpoint_are_not_found(site: Any, run: Run, path: str) -> None:
    assert code_of(site.http.get(f"/runs/nowhere/checkpoints{path}")) == (404, "run_not_found")
    assert code_of(site.http.get(f"{PLACE}/step=7/content")) == (404, "checkpoint_not_found")
    assert code_of(site.http.get(f"{PLACE}/..%2Fconfig.yaml")) in {(404, "not_found"), (404, "checkpoint_not_found")}
