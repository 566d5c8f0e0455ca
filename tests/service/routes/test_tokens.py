"""Tokens, texts and likelihoods over HTTP."""

import json
from typing import Any

import httpx
import pytest

RUN = {"run": "tiny"}
PAIR = {"good": "a b", "bad": "a", "prefix": "One"}


@pytest.fixture
def host(site) -> Any:
    site.make_run("tiny")
    return site.add_host()


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_tokens_and_texts_come_from_the_process_that_has_the_checkpoint(site, host) -> None:
    text = "One\u2028day"
    got = site.http.post("/tokenize", json={**RUN, "text": text}).json()
    assert (got["checkpoint"], bytes(got["tokens"]).decode(), got["count"]) == ("model_best.pt", text, 9)
    assert site.http.post("/detokenize", json={**RUN, "tokens": got["tokens"]}).json()["text"] == text
    assert [asked["checkpoint"] for asked in host.asked] == ["model_best.pt", "model_best.pt"]


def test_scores_come_whole_or_as_lines_in_order(site, host) -> None:
    whole = site.http.post("/score", json={**RUN, "texts": ["a b", [1, 2], {"text": "c", "prefix": "\u2028"}]})
    assert [result["tokens"] for result in whole.json()["results"]] == [3, 2, 1]
    assert host.asked[0]["texts"] == ["a b", [1, 2], {"text": "c", "prefix": "\u2028"}]
    assert (host.asked[0]["max_tokens"], host.asked[0]["client"]) == (65_536, "127.0.0.1")

    for options in ({"params": {"format": "ndjson"}}, {"headers": {"Accept": "application/x-ndjson"}}):
        reply = site.http.post("/score", json={**RUN, "pairs": [PAIR] * 3}, **options)
        assert reply.headers["content-type"].startswith("application/x-ndjson")
        *results, end = lines_of(reply.text)
        assert [(line["index"], line["correct"]) for line in results] == [(0, False), (1, False), (2, False)]
        assert end["end"]["weights"] == "fp32"


def test_a_fallback_to_other_weights_is_a_warning_in_each_form(site, host) -> None:
    site.layout.run("tiny").joinpath("model_best.pt").rename(site.layout.run("tiny") / "model_final.pt")
    site.layout.run("tiny").joinpath("model_best.json").rename(site.layout.run("tiny") / "model_final.json")
    asked = {**RUN, "texts": ["a"]}
    lines = lines_of(site.http.post("/score?format=ndjson", json=asked).text)
    for warnings in (site.http.post("/score", json=asked).json()["warnings"], lines[-1]["end"]["warnings"]):
        assert [warning["code"] for warning in warnings] == ["checkpoint_fallback", "of_the_process"]


def test_what_the_process_refuses_has_its_pointers(site, host) -> None:
    reply = site.http.post("/score", json={**RUN, "texts": ["long"]})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert [(error["pointer"], error["value"]) for error in reply.json()["errors"]] == [("/texts/0", 99)]


def test_an_error_after_the_first_result_is_a_line(site, host) -> None:
    reply = site.http.post("/score?format=ndjson", json={**RUN, "texts": ["breaks"]})
    *_, last = lines_of(reply.text)
    assert (last["error"]["code"], last["error"]["status"]) == ("cuda_oom", 503)


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_a_client_that_leaves_ends_the_work(site, host, form: str) -> None:
    with httpx.Client(base_url=site.url, timeout=0.5, trust_env=False) as http, pytest.raises(httpx.ReadTimeout):
        http.post(f"/score?format={form}", json={**RUN, "texts": ["endless"]})
    assert host.left_alone.wait(5)


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/tokenize", {"text": "\ud800"}, "/text"),
        ("/tokenize", {}, "/text"),
        ("/tokenize", {"text": "a", "tokens": [1]}, "/tokens"),
        ("/tokenize", {"text": "a" * 200_001}, "/text"),
        ("/detokenize", {"tokens": []}, "/tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "/tokens/1"),
        ("/detokenize", {"tokens": [1.5]}, "/tokens/0"),
        ("/detokenize", {"tokens": "a"}, "/tokens"),
        ("/score", {}, "/texts"),
        ("/score", {"texts": ["a"], "pairs": [PAIR]}, "/pairs"),
        ("/score", {"texts": ["a"] * 1001}, "/texts"),
        ("/score", {"texts": ["a"], "stride": 0}, "/stride"),
        ("/score", {"texts": ["a"], "bos": "x"}, "/bos"),
        ("/score", {"texts": [{"text": [1], "prefix": "a"}]}, "/texts/0/text"),
        ("/score?format=xml", {"texts": ["a"]}, "/format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(site, host, path: str, body: dict[str, Any], pointer: str) -> None:
    headers = {"Content-Type": "application/json"}
    reply = site.http.post(path, content=json.dumps({**RUN, **body}), headers=headers)  # httpx sends no half character
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]
    assert host.asked == []


def test_many_wrong_keys_are_refused_at_once(site, host) -> None:
    texts = [{"text": "a", **{f"wrong{n}": 0 for n in range(40)}} for _ in range(500)]
    reply = site.http.post("/score", json={**RUN, "texts": texts})
    assert (reply.status_code, len(reply.json()["errors"])) == (422, 100)


def test_other_bodies_types_and_runs_are_refused(site, host) -> None:
    json_type = {"Content-Type": "application/json"}
    replies = [
        site.http.post("/score", content=b"{", headers=json_type),
        site.http.post("/score", content=b'{"run": "tiny", "run": "tiny"}', headers=json_type),
        site.http.post("/tokenize", content=b'{"text": "\xff"}', headers=json_type),
        site.http.post("/tokenize", content=b"text: a", headers={"Content-Type": "application/yaml"}),
        site.http.post("/score", json={**RUN, "texts": ["a"]}, headers={"Accept": "image/png"}),
        site.http.post("/tokenize", json={"run": "other", "text": "a"}),
        site.http.post("/detokenize", json={**RUN, "checkpoint": "step=7", "tokens": [1]}),
    ]
    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == [
        (400, "malformed_body"),
        (400, "malformed_body"),
        (400, "malformed_body"),
        (415, "unsupported_media_type"),
        (406, "not_acceptable"),
        (404, "run_not_found"),
        (404, "checkpoint_not_found"),
    ]
