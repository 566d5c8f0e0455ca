"""Generation over HTTP as JSON, text and server-sent events."""

import json
from typing import Any

import httpx
import pytest

from model_core.schemas import GenerateResult
from service.inference_client import ranked
from tests.polling import eventually

ASK = {"run": "tiny", "prompt": "Once"}


@pytest.fixture
def host(site) -> Any:
    site.make_run("tiny")
    return site.add_host()


def test_text_comes_as_json_by_get_and_post(site, host) -> None:
    got = site.http.get("/generate", params={**ASK, "n": 2, "temperature": "0.5", "stop": ["a", "b"], "seed": 5})
    posted = site.http.post("/generate", json={**ASK, "n": 2, "temperature": 0.5, "stop": ["a", "b"], "seed": 5})
    assert got.json() == posted.json()
    assert (got.json()["checkpoint"], got.json()["seed"], len(got.json()["choices"])) == ("model_best.pt", 5, 2)
    assert host.asked[0] == host.asked[1]
    assert host.asked[0]["stop"] == ["a", "b"]
    queried = {
        **ASK,
        "logit_bias": "11:-100,13:2.5",
        "stop_token_ids": ["3", "4"],
        "min_p": "0.1",
        "ignore_eos": "true",
    }
    body = {**ASK, "logit_bias": {"11": -100, "13": 2.5}, "stop_token_ids": [3, 4], "min_p": 0.1, "ignore_eos": True}
    site.http.get("/generate", params=queried)
    site.http.post("/generate", json=body)
    assert host.asked[2] == host.asked[3]
    assert host.asked[2]["logit_bias"] == {"11": -100.0, "13": 2.5}
    assert "no-store" not in got.headers["cache-control"]
    assert site.http.get("/generate", params=ASK).headers["cache-control"] == "no-store"


def test_text_alone_and_a_stream_of_pieces(site, host) -> None:
    text = site.http.get("/generate", params=ASK, headers={"Accept": "text/plain"})
    assert (text.text, text.headers["content-type"]) == ("Once upon a time", "text/plain; charset=utf-8")

    for options in ({"params": {**ASK, "stream": "true"}}, {"params": ASK, "headers": {"Accept": "text/event-stream"}}):
        reply = site.http.get("/generate", **options)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *pieces, end = events_of(reply.text)
        assert "".join(piece["text"] for kind, piece in pieces) == "Once upon a time"
        assert end[0] == "end"
        assert end[1]["choices"][0]["finish_reason"] == "length"


def test_a_reply_has_every_field_in_order_and_the_warnings_of_the_process(site, host) -> None:
    reply = site.http.post("/generate", json={**ASK, "prompt": "warns"})
    assert list(reply.json()) == [name for name in GenerateResult.model_fields if name != "tokens_text"]
    assert GenerateResult.model_validate(reply.json()).warnings[0].code == "slow"
    assert reply.headers["headcount-warning"].startswith("slow")
    streamed = site.http.post("/generate", json={**ASK, "prompt": "warns", "stream": True, "seed": 7})
    assert events_of(streamed.text)[-1] == ("end", reply.json())


def test_pieces_have_the_logprobs_of_their_tokens_and_the_reply_the_pieces_of_the_prompt(site, host) -> None:
    asked = {**ASK, "logprobs": 1, "seed": 7}
    whole = site.http.post("/generate", json=asked).json()
    assert whole["tokens_text"] == ["Once"]
    assert list(whole) == list(GenerateResult.model_fields)
    *pieces, end = events_of(site.http.post("/generate", json={**asked, "stream": True}).text)
    assert end == ("end", whole)
    assert [list(piece) for _, piece in pieces] == [["index", "text", "logprobs"]] * len(pieces)
    assert [scored for _, piece in pieces for scored in piece["logprobs"]] == whole["choices"][0]["logprobs"]


def test_an_error_after_the_first_piece_is_an_event(site, host) -> None:
    reply = site.http.get("/generate", params={**ASK, "prompt": "breaks", "stream": "true"})
    kind, problem = events_of(reply.text)[-1]
    assert (kind, problem["code"], problem["status"]) == ("error", "cuda_oom", 503)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_ends_the_generation(site, host, is_stream: bool) -> None:
    ask = {**ASK, "prompt": "endless", "stream": is_stream}
    with httpx.Client(base_url=site.url, timeout=0.5, trust_env=False) as http:
        if is_stream:
            with http.stream("POST", "/generate", json=ask) as reply:
                assert next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/generate", json=ask)
    assert host.left_alone.wait(2)


def test_what_the_process_refuses_keeps_its_code(site, host) -> None:
    long = site.http.get("/generate", params={**ASK, "prompt": "long"})
    assert (long.status_code, long.json()["code"]) == (422, "prompt_too_long")
    leaves = site.http.get("/generate", params={**ASK, "prompt": "leaves"})
    assert (leaves.status_code, leaves.json()["code"]) == (503, "inference_unavailable")
    busy = site.http.get("/generate", params={**ASK, "prompt": "busy"})
    assert (busy.status_code, busy.json()["code"]) == (429, "inference_busy")
    assert [reply.headers["retry-after"] for reply in (leaves, busy)] == ["3", "3"]
    odd = site.http.get("/generate", params={**ASK, "prompt": "odd"})
    assert (odd.status_code, odd.json()["status"]) == (500, 500)


def test_what_is_missing_is_named(site) -> None:
    codes = [site.http.get("/generate", params=ASK)]
    run = site.make_run("tiny", checkpoint=None)
    codes.append(site.http.get("/generate", params=ASK))
    site.publish(run, b"weights")
    codes.append(site.http.get("/generate", params={**ASK, "checkpoint": "step=7"}))
    codes.append(site.http.get("/generate", params=ASK))
    assert [(reply.status_code, reply.json()["code"]) for reply in codes] == [
        (404, "run_not_found"),
        (409, "checkpoint_not_ready"),
        (404, "checkpoint_not_found"),
        (503, "inference_unavailable"),
    ]
    assert "retry-after" in codes[-1].headers


WRONG = [  # a body, and the pointer and the bound of the problem
    ({"temperature": -1}, "/temperature", "0"),
    ({"temperature": 1001}, "/temperature", "1000"),
    ({"temperature": "0.5"}, "/temperature", "0.5"),
    ({"temperature": True}, "/temperature", "number"),
    ({"top_p": 0}, "/top_p", "above 0"),
    ({"top_p": 1.1}, "/top_p", "1"),
    ({"min_p": 1}, "/min_p", "below 1"),
    ({"top_k": -1}, "/top_k", "0"),
    ({"repetition_penalty": 0}, "/repetition_penalty", "above 0"),
    ({"repetition_penalty": 10.5}, "/repetition_penalty", "10"),
    ({"presence_penalty": 3}, "/presence_penalty", "2"),
    ({"frequency_penalty": -3}, "/frequency_penalty", "-2"),
    ({"n": 0}, "/n", "1"),
    ({"n": 10**6}, "/n", "256"),
    ({"max_new_tokens": 0}, "/max_new_tokens", "1"),
    ({"max_new_tokens": 10**9}, "/max_new_tokens", "131072"),
    ({"max_new_tokens": 5, "min_new_tokens": 6}, "/min_new_tokens", "5"),
    ({"seed": -1}, "/seed", "0"),
    ({"seed": 2**63}, "/seed", str(2**63)),
    ({"logit_bias": {"1": 101}}, "/logit_bias/1", "100"),
    ({"logit_bias": {"1": "a"}}, "/logit_bias/1", "number"),
    ({"logit_bias": {"-1": 1}}, "/logit_bias/-1", "0"),
    ({"logit_bias": {str(token): 1 for token in range(2000)}}, "/logit_bias", "1024"),
    ({"logit_bias": [1]}, "/logit_bias", "keys"),
    ({"stop": ""}, "/stop/0", "1"),
    ({"stop": ["a"] * 17}, "/stop", "16"),
    ({"stop": "x" * 2000}, "/stop/0", "1000"),
    ({"stop_token_ids": [1] * 17}, "/stop_token_ids", "16"),
    ({"stop_token_ids": [1, -1]}, "/stop_token_ids/1", "0"),
    ({"stop_token_ids": [1.5]}, "/stop_token_ids/0", "whole"),
    ({"logprobs": 21}, "/logprobs", "20"),
    ({"ignore_eos": "yes"}, "/ignore_eos", "true"),
    ({"timeout_s": 0}, "/timeout_s", "above 0"),
    ({"prompt": [1, 2]}, "/prompt", "text"),
    ({"prompt": "x" * 200_001}, "/prompt", "200000"),
    ({"run": "../x"}, "/run", "63"),
    ({"temprature": 1}, "/temprature", "temperature"),
]


@pytest.mark.parametrize(("body", "pointer", "bound"), WRONG, ids=[f"{n}{p}" for n, (_, p, _) in enumerate(WRONG)])
def test_a_wrong_value_is_named_with_its_bound(site, body: dict[str, Any], pointer: str, bound: str) -> None:
    reply = site.http.post("/generate", json={**ASK, **body})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    (problem,) = reply.json()["errors"]
    assert problem["pointer"] == pointer
    assert bound in problem["detail"]


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"temperature": "nan"}, "/temperature"),
        ({"max_new_tokens": "many"}, "/max_new_tokens"),
        ({"n": ["1", "2"]}, "/n"),
        ({"logit_bias": "11"}, "/logit_bias/11"),
        ({"logit_bias": "11:1,11:2"}, "/logit_bias"),
        ({"logit_bias": "a:1"}, "/logit_bias/a"),
        ({"stop_token_ids": ["1", "x"]}, "/stop_token_ids/1"),
    ],
)
def test_a_wrong_parameter_of_a_query_is_named(site, params: dict[str, Any], pointer: str) -> None:
    reply = site.http.get("/generate", params={**ASK, **params})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"run": "tiny", "run": "tiny"}', {}, 400),
        (b'{"run": "tiny", "temperature": NaN}', {}, 400),
        (b'{"run": "tiny", "prompt": "\xff"}', {}, 400),
        (b'{"run": "tiny", "prompt": "\\ud800"}', {}, 422),
        (b'{"run": "tiny"}', {"Content-Type": "text/csv"}, 415),
        (b'{"run": "tiny"}', {"Accept": "image/png"}, 406),
    ],
    ids=["no json", "a key twice", "not a number", "no utf-8", "half a pair", "another type", "another reply"],
)
def test_a_body_that_is_none_is_a_problem(site, host, content: bytes, headers: dict[str, str], status: int) -> None:
    reply = site.http.post("/generate", content=content, headers={"Content-Type": "application/json", **headers})
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")


def test_a_long_prompt_goes_by_post(site, host) -> None:
    prompt = "word " * 500
    refused = site.http.get("/generate", params={**ASK, "prompt": prompt})
    assert (refused.status_code, refused.json()["code"]) == (414, "uri_too_long")
    assert site.http.post("/generate", json={**ASK, "prompt": prompt}).status_code == 200


def test_equal_requests_meet_on_one_host_and_move_only_when_it_is_gone(site) -> None:
    site.make_run("tiny")
    hosts = {host.url: host for host in (site.add_host("one"), site.add_host("two"), site.add_host("three"))}
    for _ in range(4):
        assert site.http.get("/generate", params=ASK).status_code == 200
    first, second, _ = ranked(hosts, "tiny", "model_best.pt")
    assert [len(hosts[url].asked) for url in (first, second)] == [4, 0]

    hosts[first].stop()
    assert site.http.get("/generate", params=ASK).status_code == 200
    assert len(hosts[second].asked) == 1


def test_a_busy_host_is_passed_over_and_all_busy_ones_name_the_shortest_wait(site) -> None:
    site.make_run("tiny")
    hosts = [site.add_host("one"), site.add_host("two")]
    hosts[0].wait_s = 2
    reply = site.http.post("/generate", json={**ASK, "prompt": "busy"})
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (429, "inference_busy", "2")
    assert [len(host.asked) for host in hosts] == [1, 1]


def test_a_client_with_too_many_open_requests_waits(make_site) -> None:
    site = make_site(max_concurrent=1)
    site.make_run("tiny")
    host = site.add_host()
    with site.http.stream("POST", "/generate", json={**ASK, "prompt": "endless", "stream": True}) as first:
        assert first.status_code == 200
        refused = site.http.post("/generate", json=ASK)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert int(refused.headers["retry-after"]) > 0
    assert host.left_alone.wait(2)
    assert eventually(lambda: site.http.post("/generate", json=ASK).status_code == 200)
    assert {asked["client"] for asked in host.asked} == {"127.0.0.1"}


def test_a_request_has_a_largest_size(make_site) -> None:
    site = make_site(max_n=2, max_request_tokens=100)
    site.make_run("tiny")
    asked = ({"n": 3, "max_new_tokens": 1}, {"n": 2, "max_new_tokens": 51}, {"max_new_tokens": 101})
    replies = [site.http.post("/generate", json={**ASK, **fields}) for fields in asked]
    assert [reply.status_code for reply in replies] == [422] * 3
    pointers = [error["pointer"] for reply in replies for error in reply.json()["errors"]]
    assert pointers == ["/n", "/max_new_tokens", "/max_new_tokens"]


def test_a_host_whose_heartbeat_stopped_is_not_waited_for(site) -> None:
    site.make_run("tiny")
    host = site.add_host()
    site.registry.register("inference", host.name, {"url": host.url, "device": "cpu", "models": []}, 1)
    reply = site.http.post("/generate", json={**ASK, "prompt": "endless"})
    assert (reply.status_code, reply.json()["code"]) == (503, "inference_unavailable")
    assert [asked["prompts"] for asked in host.asked] == [["endless"]]
    assert host.left_alone.wait(2)


def events_of(text: str) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found
