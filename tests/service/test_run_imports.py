"""POST /runs: a folder, an archive or files become a job; what is refused leaves nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_core.config import ModelConfig
from model_core.hf.hf_config import build_config

GOOD = json.dumps(build_config(ModelConfig(n_layer=1, n_embd=8, n_head=2), 50256))
MINE = {"name": "mine", "source": "file:uploads/gpt2"}


@pytest.fixture
def folder(site: Any) -> Path:
    """A folder that an operator copied; only a job reads its weights."""
    place = Path(site.layout.uploads) / "gpt2"
    place.mkdir(parents=True)
    (place / "config.json").write_text(GOOD)
    (place / "model.safetensors").write_bytes(b"weights")
    return place


def sent(**files: str) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, content.encode())) for name, content in files.items()]


FILES = {"config.json": GOOD, "model.safetensors": "weights", "README.md": "a card", "tf_model.h5": "other weights"}


def left(site: Any) -> list[str]:
    """Everything below uploads."""
    return sorted(path.relative_to(site.layout.uploads).as_posix() for path in site.layout.uploads.rglob("*"))


def test_a_folder_of_the_data_root_is_imported_by_a_job(site: Any, folder: Path) -> None:
    reply = site.http.post("/runs", json=MINE)
    job = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["run"], job["dataset"], job["links"]["run"]) == ("import", "mine", None, "/runs/mine")
    assert job["progress"]["step"] is None
    claim = site.claim()
    assert claim.config == {"experiment_name": "mine", "job": {"source": "file:uploads/gpt2"}}
    assert [item["id"] for item in site.http.get("/jobs", params={"kind": "import"}).json()["data"]] == [job["id"]]


@pytest.mark.parametrize("media", ["application/json", "application/yaml"])
def test_post_jobs_is_the_same_door(site: Any, folder: Path, media: str) -> None:
    tree = {"experiment_name": "mine", "job": {"kind": "import", "source": "file:uploads/gpt2"}}
    reply = site.http.post("/jobs", content=json.dumps(tree), headers={"Content-Type": media})
    assert (reply.status_code, reply.json()["kind"], reply.json()["run"]) == (202, "import", "mine")


def test_files_are_kept_until_the_job_has_read_them(site: Any) -> None:
    reply = site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES))
    assert reply.status_code == 202, reply.text
    source = site.claim().config["job"]["source"]
    assert source.startswith("file:uploads/.models/mine/")
    kept = site.layout.uploads.parent / source.removeprefix("file:")
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_may_be_larger_than_other_bodies(site: Any) -> None:
    weights = "x" * (site.settings.max_body_bytes + 1)
    files = sent(**{**FILES, "model.safetensors": weights})
    assert site.http.post("/runs", data={"name": "mine"}, files=files).status_code == 202


def test_an_archive_is_kept_as_it_is(site: Any, folder: Path) -> None:
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    reply = site.http.post("/runs", data={"name": "mine"}, files={"files": ("my gpt2.zip", archive.read_bytes())})
    assert reply.status_code == 202, reply.text
    assert site.claim().config["job"]["source"].endswith("/my gpt2.zip")


def test_a_key_gets_its_job_and_what_was_sent_again_goes(site: Any) -> None:
    key = {"Idempotency-Key": "one"}
    first = site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES), headers=key)
    again = site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES), headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    shutil.rmtree(site.layout.uploads / ".models")  # the import is done
    assert site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES), headers=key).status_code == 200
    assert [name for name in left(site) if "config" in name] == []
    other = site.http.post("/runs", data={"name": "other"}, files=sent(**FILES), headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_a_name_that_is_taken_is_refused_with_a_free_one(site: Any, folder: Path) -> None:
    site.make_run("mine")
    for reply in (
        site.http.post("/runs", json=MINE), site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES)),
    ):  # fmt: skip
        assert (reply.status_code, reply.json()["code"], reply.json()["next_free"]) == (409, "run_exists", "mine-2")
    site.http.post("/runs", json={**MINE, "name": "next"})
    waiting = site.http.post("/runs", json={**MINE, "name": "next"})
    assert (waiting.status_code, waiting.json()["code"]) == (409, "run_exists")
    assert [name for name in left(site) if ".models/" in name] == []


WRONG: list[tuple[dict[str, Any], int, str, list[str]]] = [
    ({}, 422, "invalid_parameter", ["/name", "/source"]),
    ({"name": "../x", "source": "file:uploads/gpt2"}, 422, "invalid_parameter", ["/name"]),
    ({**MINE, "sorce": "x"}, 422, "invalid_parameter", ["/sorce"]),
    ({**MINE, "source": "gpt2"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "hub:openai-community/gpt2"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "file:exp"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "file:uploads/../exp"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "file:/etc"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "file:uploads/nowhere"}, 422, "invalid_parameter", ["/source"]),
    ({**MINE, "source": "file:uploads"}, 202, "", []),  # one folder below it has a model
    ({**MINE, "source": "file:uploads/empty"}, 422, "invalid_data", []),
    ({**MINE, "source": "file:uploads/llama"}, 422, "invalid_data", []),
    ({**MINE, "source": "file:uploads/pointer"}, 422, "invalid_data", []),
]


@pytest.mark.parametrize(("body", "status", "code", "pointers"), WRONG)
def test_what_cannot_be_imported_is_refused_at_once(
    site: Any, folder: Path, body: dict[str, Any], status: int, code: str, pointers: list[str]
) -> None:
    home = folder.parent
    for name, text in {
        "llama": '{"model_type": "llama"}',
        "pointer": "version https://git-lfs.github.com/spec/v1",
    }.items():
        if name in str(body.get("source")):
            (home / name).mkdir()
            (home / name / "config.json").write_text(text)
    if "empty" in str(body.get("source")):
        (home / "empty").mkdir()
    reply = site.http.post("/runs", json=body)
    assert (reply.status_code, reply.json().get("code", "")) == (status, code), reply.text
    assert {error["pointer"] for error in reply.json().get("errors", ())} == set(pointers)


def test_files_that_are_no_model_leave_nothing(site: Any) -> None:
    none = site.http.post("/runs", data={"name": "mine"}, files=sent(**{"README.md": "only a card"}))
    bare = site.http.post("/runs", data={"name": "mine"}, files=sent(**{"model.safetensors": "weights"}))
    named = site.http.post("/runs", data={"name": "a b"}, files=sent(**FILES))
    both = site.http.post("/runs", data=MINE, files=sent(**FILES))
    assert [error["pointer"] for error in none.json()["errors"]] == ["/files"]
    assert (bare.status_code, bare.json()["code"]) == (422, "invalid_data")
    assert [error["pointer"] for error in named.json()["errors"]] == ["/name"]
    assert [error["pointer"] for error in both.json()["errors"]] == ["/source"]
    assert [name for name in left(site) if "." not in name or "config" in name] == []
    assert site.http.get("/jobs").json()["data"] == []


def test_only_an_import_takes_a_model_and_it_needs_one(site: Any, folder: Path) -> None:
    training = site.http.post("/jobs", json={"experiment_name": "x", "job": {"source": "file:uploads/gpt2"}})
    bare = site.http.post("/jobs", json={"experiment_name": "x", "job": {"kind": "import"}})
    for reply in (training, bare):
        assert (reply.status_code, [error["pointer"] for error in reply.json()["errors"]]) == (422, ["/job/source"])


def test_deleting_a_failed_import_frees_what_was_sent(site: Any) -> None:
    job = site.http.post("/runs", data={"name": "mine"}, files=sent(**FILES)).json()
    site.finish(site.claim(), "failed")
    assert site.http.delete(f"/jobs/{job['id']}", params={"artifacts": "true"}).status_code == 204
    assert [name for name in left(site) if "config" in name] == []
