"""Request bodies, names and values: what is refused, and what is converted."""

import time
from typing import Any

import pytest

YAML = {"Content-Type": "application/yaml"}


def validated(site: Any, text: str) -> Any:
    return site.http.post("/configs/validate", content=text, headers=YAML)


@pytest.mark.parametrize(
    "name", ["../x", "", "x" * 64, ".hidden", "a b", "a/b", "a\\b", "naïve", "x\n", "-x", "CON:", 7, ["x"], {"x": 1}]
)
def test_a_name_that_could_leave_its_place_is_refused(site, name: Any) -> None:
    tree = {"experiment_name": name, "data": {"dataset": name}, "job": {"preset": name}}
    reply = site.http.post("/jobs", json=tree)
    assert reply.status_code == 422
    assert {error["pointer"] for error in reply.json()["errors"]} == {
        "/experiment_name", "/data/dataset", "/job/preset",
    }  # fmt: skip


def test_a_wrong_name_is_refused_also_where_another_takes_its_place(site) -> None:
    reply = site.http.post("/jobs", json={"experiment_name": 7}, params={"run": "fine", "validate_only": "true"})
    assert [error["pointer"] for error in reply.json()["errors"]] == ["/experiment_name"]


@pytest.mark.parametrize(
    ("address", "nearest"),
    [
        ("/jobs?statsu=queued", "status"),
        ("/jobs/{job}/metrics?max_point=9", "max_points"),
        ("/queue?limits=5", "limit"),
    ],
)
def test_an_unknown_query_parameter_is_refused_with_the_nearest_of_its_address(
    site, address: str, nearest: str
) -> None:
    reply = site.http.get(address.format(job=site.submit()["id"]))
    assert reply.status_code == 422
    [problem] = reply.json()["errors"]
    assert (problem["pointer"], problem["nearest"][0]) == (f"/{address.partition('?')[2].partition('=')[0]}", nearest)


def test_a_source_is_followed_through_links(site) -> None:
    uploads = site.settings.data / "uploads"
    uploads.mkdir()
    (uploads / "fine.txt").write_text("Once upon a time.")
    (uploads / "out").symlink_to("/etc")
    (uploads / "in").symlink_to(uploads / "fine.txt")
    codes = {
        source: validated(site, f"data: {{source: 'file:{source}'}}").status_code
        for source in ("uploads/fine.txt", "uploads/in", "uploads/out/passwd", "uploads/../exp/x", "uploads/out")
    }
    assert codes == {
        "uploads/fine.txt": 200, "uploads/in": 200, "uploads/out/passwd": 422, "uploads/../exp/x": 422,
        "uploads/out": 422,
    }  # fmt: skip


@pytest.mark.alone
def test_a_model_of_gpt3s_size_is_counted_and_never_built(site) -> None:
    tree = {
        "experiment_name": "gpt3",
        "model": {"n_layer": 96, "n_embd": 12288, "n_head": 96, "block_size": 2048},
        "training": {"sequence_length": 2048},
        "data": {"source": "stories"},
    }
    began = time.monotonic()
    counted = site.http.post("/configs/validate", json=tree)
    assert time.monotonic() - began < 4
    assert counted.json()["budget"]["parameters"] > 174e9

    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": [], "memory_bytes": 64 << 30}, 60)
    refused = site.http.post("/jobs", json=tree)
    assert (refused.status_code, refused.json()["code"]) == (422, "does_not_fit")
    assert site.http.get("/jobs").json()["data"] == []


def test_no_other_origin_is_let_in(site) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for reply in (site.http.get("/jobs", headers=origin), site.http.options("/jobs", headers=origin)):
        assert [name for name in reply.headers if name.startswith("access-control")] == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/jobs/job_0/events", "job_not_found"),
        ("/jobs/job_0/logs", "job_not_found"),
        ("/generate?run=nowhere&stream=true", "run_not_found"),
    ],
)
def test_what_cannot_be_streamed_is_reported_before_the_stream_begins(site, path: str, code: str) -> None:
    reply = site.http.get(path, headers={"Accept": "text/event-stream"})
    assert (reply.status_code, reply.json()["code"]) == (404, code)
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("address", "errors"),
    [
        ("/jobs?limt=3", [("/limt", "3", ["limit"])]),
        ("/jobs?limit=0&after=a", [("/limit", "0", [])]),
        ("/jobs?limit=5&limit=5", [("/limit", None, [])]),
        ("/jobs?hf_token=abc&limit=0", [("/hf_token", None, [])]),
        ("/jobs?status=runing&sort=asc", [("/status", "runing", ["running", "stopping"]), ("/sort", "asc", [])]),
        ("/runs/a%20b/report?format=mdd", [("/format", "mdd", ["md"])]),
        ("/runs/a%20b/report", [("/run", "a b", ["a-b"])]),
        ("/generate?run=x&n=none&stop=a&stop=b", [("/n", "none", [])]),
        ("/jobs/job_0/metrics?name=loss,los", [("/name/1", "los", ["loss", "val_loss"])]),
    ],
)  # fmt: skip
def test_a_wrong_query_is_answered_with_the_parameter_its_value_and_what_is_near(
    site, address: str, errors: list[tuple[str, str | None, list[str]]]
) -> None:
    reply = site.http.get(address)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    found = [(error["pointer"], error["value"], error["nearest"]) for error in reply.json()["errors"]]
    assert found == errors
