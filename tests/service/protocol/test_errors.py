"""Problem documents for every kind of wrong request."""

import json
import socket
import time
from typing import Any

import pytest

from model_core.errors import ModelCoreError
from service.protocol.errors import PROBLEMS, json_safe

pytestmark = pytest.mark.alone

YAML, JSON = "application/yaml", "application/json"
BOMB = "a: &a [x,x]\n" + "".join(
    f"{c}: &{c} [{'*' + p + ','}*{p}]\n" for p, c in zip("abcdefghij", "bcdefghijk", strict=True)
)


def test_every_error_is_the_same_document(site) -> None:
    reply = site.http.get("/jobs/job_1")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json() == {
        "type": "urn:headcount:problem:job_not_found",
        "title": "There is no such job",
        "status": 404,
        "detail": "no job 'job_1'",
        "code": "job_not_found",
        "errors": [],
        "request_id": reply.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    ("tree", "pointer", "part", "nearest"),
    [
        ({"model": {"n_head": 10}}, "/model/n_head", "768", [8, 12]),
        ({"model": {"n_head_list": [12] * 11}}, "/model/n_head_list", "11", None),
        ({"model": {"n_head_list": []}}, "/model/n_head_list", "12", None),
        ({"model": {"n_hed": 12}}, "/model/n_hed", "n_head", ["n_head", "n_embd"]),
        ({"model": {"vocab_size": 50000}}, "/model/vocab_size", "50257", [50257, 50304]),
        ({"model": {"n_layer": 10**9}}, "/model/n_layer", "1000", None),
        ({"model": {"n_layer": 10**60}}, "/model/n_layer", "1000", None),
        ({"training": {"sequence_length": 2048}}, "/training/sequence_length", "1024", [1024]),
        ({"training": {"total_batch_size": 500000}}, "/training/total_batch_size", "", [491520, 507904]),
        ({"experiment_name": "../x"}, "/experiment_name", "'../x'", None),
        ({"experiment_name": "x\ud800"}, "/experiment_name", "", None),
        ({"training": {"max_lr": "1e999"}}, "/training/max_lr", "", None),
        ({"job": {"metadata": {"a": 1}}}, "/job/metadata/a", "", None),
        ({"data": {"source": "file:/etc/passwd"}}, "/data/source", "uploads", None),
        ({"execution": {"train": False, "test": False}}, "/execution/train", "", [True]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(
    site, tree: dict[str, Any], pointer: str, part: str, nearest: list[Any] | None
) -> None:
    began = time.monotonic()
    reply = site.http.post("/jobs", content=json.dumps(tree), headers={"Content-Type": JSON})
    assert time.monotonic() - began < 4
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (422, "invalid_config")
    found = {error["pointer"]: error for error in problem["errors"]}
    assert part in found[pointer]["detail"]
    assert nearest in (None, found[pointer]["nearest"])


def test_all_wrong_values_come_in_one_answer(site) -> None:
    tree = {"model": {"n_hed": 1, "n_layer": 0}, "training": {"batch_size": 0}, "job": {"priorty": 1}}
    pointers = {error["pointer"] for error in site.http.post("/jobs", json=tree).json()["errors"]}
    assert pointers == {"/model/n_hed", "/model/n_layer", "/training/batch_size", "/job/priorty"}


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "part"),
    [
        ("model:\n\tn_layer: 2", YAML, 400, "malformed_body", "line 2"),
        (BOMB, YAML, 400, "malformed_body", ""),
        ("a: [" * 5000, YAML, 400, "malformed_body", ""),
        ("- a\n- b", YAML, 400, "malformed_body", ""),
        (f"a: {'9' * 5000}", YAML, 400, "malformed_body", ""),
        ("a: !!python/object:os.system x", YAML, 400, "malformed_body", "line 1"),
        ("a: \x00", YAML, 400, "malformed_body", ""),
        (b"\xff\xfe\x00", YAML, 400, "malformed_body", "UTF-8"),
        ("a: 1\n" * 20000, YAML, 413, "body_too_large", "65,536"),
        ("{", JSON, 400, "malformed_body", "line 1, column 2"),
        ("[1]", JSON, 400, "malformed_body", ""),
        ("", JSON, 400, "malformed_body", ""),
        ('{"a": NaN}', JSON, 400, "malformed_body", "NaN"),
        ('{"a": ' + "9" * 5000 + "}", JSON, 400, "malformed_body", ""),
        ('{"a":' * 100_000, JSON, 400, "malformed_body", ""),
        ("a=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type", "application/yaml"),
        ("x: 1", "", 415, "unsupported_media_type", "application/yaml"),
        ('{"job": {"preset": "nothing"}}', JSON, 404, "unknown_preset", "baseline"),
        ('{"job": 5}', JSON, 422, "invalid_config", "/job"),
        ('{"model": []}', JSON, 422, "invalid_config", "/model"),
        ("{" + ",".join(f'"key{i}": 1' for i in range(2500)) + "}", JSON, 422, "invalid_config", "key1"),
        ("{" + ",".join(f'"key{i}": 1' for i in range(50_000)) + "}", JSON, 413, "body_too_large", "3,000"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(
    site, body: str | bytes, kind: str, status: int, code: str, part: str
) -> None:
    began = time.monotonic()
    reply = site.http.post("/jobs", content=body, headers={"Content-Type": kind})
    assert time.monotonic() - began < 4
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (status, code)
    assert part in problem["detail"]
    assert "Traceback" not in reply.text
    assert len(reply.content) < 100_000


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_long_body_is_refused_by_its_header_or_while_it_comes(site, is_announced: bool) -> None:
    body = b" " * (10 << 20)
    content = body if is_announced else (body[i : i + 65536] for i in range(0, len(body), 65536))
    reply = site.http.post("/jobs", content=content, headers={"Content-Type": JSON})
    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    assert "1,048,576" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/runs/../../etc/passwd", 404, "not_found"),
        ("GET", "/jobs/%ff%00", 404, "job_not_found"),
        ("GET", "/runs/%ff", 422, "invalid_parameter"),
        ("GET", "/jobs?limit=0", 422, "invalid_parameter"),
        ("GET", "/jobs?limit=1e999", 422, "invalid_parameter"),
        ("GET", "/jobs?status=runing", 422, "invalid_parameter"),
        ("GET", "/jobs?after=job_unknown", 404, "job_not_found"),
        ("GET", "/jobs?run=%ff%ed%a0%80", 422, "invalid_parameter"),
        ("GET", "/jobs?sort=asc", 422, "invalid_parameter"),
        ("GET", "/docs/static/../../app.py", 404, "not_found"),
        ("DELETE", "/jobs", 405, "method_not_allowed"),
    ],
)
def test_a_wrong_address_is_a_problem_too(site, method: str, path: str, status: int, code: str) -> None:
    reply = site.http.request(method, path)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_a_wrong_word_comes_with_the_nearest_right_one(site) -> None:
    [error] = site.http.get("/jobs", params={"status": "runing"}).json()["errors"]
    assert (error["pointer"], error["value"], error["nearest"]) == ("/status", "runing", ["running", "stopping"])


def test_a_refused_method_names_all_that_the_address_takes(site) -> None:
    assert site.http.delete("/jobs").headers["allow"] == "GET, HEAD, POST"
    assert site.http.get("/configs/validate").status_code == 404  # it is the name of a preset there
    assert site.http.get("/jobs/job_1/cancel").headers["allow"] == "POST"


def test_values_of_any_kind_fit_into_a_document() -> None:
    odd = {"a\ud800": float("nan"), "b": {1, 2}, "c": b"\xff", "d": [float("-inf"), None, True, 10**50]}
    json.dumps(json_safe(odd), allow_nan=False).encode()


def test_every_code_of_an_error_is_in_the_table() -> None:
    never_served = {"non_finite_loss", "failed", "cancelled", "stopped"}
    of_jobs = {"hub_login_required", "hub_terms_not_accepted", "hub_bad_token", "hub_not_found", "hub_unreachable"}
    served = [error for error in ModelCoreError.__subclasses__() if not error.__module__.startswith("headcount")]
    assert {error.code for error in served} - set(PROBLEMS) <= never_served | of_jobs


def test_bytes_that_are_no_request_do_not_end_the_service(site) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert site.http.get("/healthz").status_code == 200
