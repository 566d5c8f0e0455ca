"""OpenAI's completions over HTTP, with an inference process that repeats what it is told."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.completion_views import Completion
from tests.polling import eventually
from tests.service.fake_host import Served

ASK = {"model": "tiny", "prompt": "Once"}
JSON = {"Content-Type": "application/json"}
UNKNOWN = 99_999
WRONG = {"code": "invalid_parameter", "detail": "refused"}
REFUSALS = {
    "long": (422, "prompt_too_long"),
    "wrong": (422, "invalid_parameter"),
    "damaged": (409, "checkpoint_damaged"),
    "away": (503, "inference_unavailable"),
    "odd": (500, "odd_code"),
}


class Repeater:
    """Speaks the inference process's protocol: each text repeats its prompt, word by word, or refuses."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left_alone = threading.Event()
        self.served = Served(Starlette(routes=[Route("/generate", self._generate, methods=["POST"])]))

    async def _generate(self, request: Request) -> Response:
        asked = (await request.json())["request"]
        self.asked.append(asked)
        if refusal := REFUSALS.get(str(asked["prompts"][0])):
            status, code = refusal
            return JSONResponse({"code": code, "detail": "refused"}, status_code=status)
        if unknown := [f"/prompts/{i}/{p.index(UNKNOWN)}" for i, p in enumerate(asked["prompts"]) if UNKNOWN in [*p]]:
            problems = [{"pointer": pointer, "detail": "no token has this id", "value": UNKNOWN} for pointer in unknown]
            return JSONResponse({**WRONG, "problems": problems}, status_code=422)
        if asked["stream"]:
            return StreamingResponse(self._lines(asked), media_type="application/x-ndjson")
        return JSONResponse(_result(asked))

    async def _lines(self, asked: dict[str, Any]) -> Any:
        try:
            result = _result(asked)
            head = {"fingerprint": result["fingerprint"]}
            for choice in result["choices"]:
                first, space, rest = choice["text"].partition(" ")
                piece = {"index": choice["index"], "tokens": [1]}
                yield json.dumps({**head, "choices": [piece | {"text": first + space}]}) + "\n"
                last = piece | {"text": rest, "finish_reason": choice["finish_reason"]}
                yield json.dumps({"choices": [last]}) + "\n"
                head = {}
            while asked["prompts"][0] == "endless":
                yield json.dumps({"choices": [{"index": 0, "text": ".", "tokens": [1]}]}) + "\n"
                await asyncio.sleep(0.02)
            if asked["prompts"][0] == "breaks":
                yield json.dumps({"error": {"code": "cuda_oom", "detail": "no memory"}}) + "\n"
            else:
                yield json.dumps({"result": result}) + "\n"
        finally:
            if asked["prompts"][0] == "endless":
                self.left_alone.set()


def _result(asked: dict[str, Any]) -> dict[str, Any]:
    texts = [
        prompt if isinstance(prompt, str) else f"{prompt}" for prompt in asked["prompts"] for _ in range(asked["n"])
    ]
    kept = {name: asked[name] for name in ("run", "checkpoint")}
    choices = [{"index": i, "text": text, "tokens": [1], "finish_reason": "length"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0}
    prompts = [{"tokens": [1], "pieces": ["x"]} for _ in asked["prompts"]]
    return {**kept, "fingerprint": "0" * 12, "prompts": prompts, "choices": choices, "usage": usage}


@pytest.fixture(scope="module")
def repeater() -> Iterator[Repeater]:
    repeater = Repeater()
    yield repeater
    repeater.served.stop()


@pytest.fixture
def host(site, repeater: Repeater) -> Repeater:
    site.make_run("tiny")
    site.registry.register("inference", "repeater", {"url": repeater.served.url, "device": "cpu", "models": []}, 60)
    repeater.asked.clear()
    return repeater


def texts(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    Completion.model_validate(reply.json())
    return [choice["text"] for choice in reply.json()["choices"]]


def error_of(reply: httpx.Response) -> tuple[Any, ...]:
    error = reply.json()["error"]
    assert reply.headers["content-type"] == "application/json"
    assert (set(reply.json()), set(error)) == ({"error"}, {"message", "type", "param", "code"})
    assert isinstance(error["message"], str)
    return reply.status_code, error["type"], error["param"], error["code"]


def chunks_of(reply: httpx.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = reply.content.split(b"\n")
    assert all(line.startswith(b"data: ") for line in lines if line)
    return [line[6:].decode() for line in lines if line]


@pytest.mark.parametrize(
    ("prompt", "prompts", "expected"),
    [
        ("Once", ["Once"], ["Once"]),
        (["Once", "Twice"], ["Once", "Twice"], ["Once", "Twice"]),
        ([7, 8], [[7, 8]], ["[7, 8]"]),
        ([[7, 8], [9]], [[7, 8], [9]], ["[7, 8]", "[9]"]),
        (None, [""], [""]),
        ("a\u2028b\x85c\r\n\0\ufeff", ["a\u2028b\x85c\r\n\0\ufeff"], ["a\u2028b\x85c\r\n\0\ufeff"]),
    ],
)
def test_prompts_have_four_forms(site, host, prompt: Any, prompts: list[Any], expected: list[str]) -> None:
    assert texts(site.http.post("/v1/completions", json={**ASK, "prompt": prompt})) == expected
    assert host.asked[0]["prompts"] == prompts


def test_the_parameters_arrive_under_our_names(site, host) -> None:
    given = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": "x", "seed": 3, "logprobs": 2, "echo": False,
        "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": -100}, "top_k": -1, "min_p": 0.1,
        "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [4], "best_of": 2,
        "suffix": "", "user": "me", "stream_options": {"include_obfuscation": True}, "store": None,
    }  # fmt: skip
    assert len(texts(site.http.post("/v1/completions", json=ASK | given, headers={"Authorization": "Bearer x"}))) == 2
    expected = {
        "run": "tiny", "checkpoint": "model_best.pt", "max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2,
        "stop": ["x"], "seed": 3, "logprobs": 2, "echo": False, "presence_penalty": 1, "frequency_penalty": -1,
        "logit_bias": {"5": -100}, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.2, "min_new_tokens": 2,
        "ignore_eos": True, "stop_token_ids": [4], "stream": False,
    }  # fmt: skip
    assert {key: host.asked[0][key] for key in expected} == expected
    site.http.post("/v1/completions", json=ASK)
    assert [host.asked[1][key] for key in ("max_new_tokens", "top_k", "temperature", "seed")] == [16, 0, 1, None]


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"min_p": 1}, "min_p", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**6}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**9}, "max_tokens", "invalid_value"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias", "invalid_value"),
        ({"best_of": 2}, "best_of", "invalid_value"),
        ({"suffix": "x"}, "suffix", "invalid_value"),
        ({"echo": 1}, "echo", "invalid_value"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[1], []]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, -1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [1, 2.0]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[1], [2, 3, None]]}, "prompt[1][2]", "invalid_value"),
        ({"prompt": ["x", "\ud800"]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["x"] * 65}, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
        ({"best": 1}, "best", "unrecognized_parameter"),
        ({"max_new_tokens": 1}, "max_new_tokens", "unrecognized_parameter"),
    ],
)
def test_a_wrong_value_is_a_400_with_its_parameter(site, changed: dict[str, Any], param: str, code: str) -> None:
    reply = site.http.post("/v1/completions", content=json.dumps(ASK | changed), headers=JSON)
    assert error_of(reply) == (400, "invalid_request_error", param, code)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("POST", "/completions", {"content": b"{"}, 400, "malformed_body"),
        ("POST", "/completions", {"content": b'{"model": "a", "model": "b"}'}, 400, "malformed_body"),
        ("POST", "/completions", {"content": b'{"model": "\xff"}'}, 400, "malformed_body"),
        ("POST", "/completions", {"content": b"[]"}, 400, "malformed_body"),
        ("POST", "/completions", {"content": b"model: a", "type": "application/yaml"}, 415, "unsupported_media_type"),
        ("POST", "/completions", {"content": b"{}", "accept": "image/png"}, 406, "not_acceptable"),
        ("POST", "/completions", {"content": b'"' + b"x" * (1 << 20) + b'"'}, 413, "body_too_large"),
        ("POST", "/completions?prompt=x", {"content": b"{}"}, 400, "invalid_value"),
        ("GET", "/completions", {}, 405, "method_not_allowed"),
        ("DELETE", "/models/tiny", {}, 405, "method_not_allowed"),
        ("POST", "/embeddings", {"content": b"{}"}, 404, None),
        ("GET", "", {}, 404, None),
    ],
)
def test_every_error_below_v1_has_openais_shape(
    site, method: str, path: str, sent: dict[str, Any], status: int, code: str | None
) -> None:
    headers = {"Content-Type": sent.get("type", "application/json"), "Accept": sent.get("accept", "*/*")}
    reply = site.http.request(method, f"/v1{path}", content=sent.get("content"), headers=headers)
    found, kind, _, its_code = error_of(reply)
    assert (found, kind, its_code) == (status, "invalid_request_error", code)
    assert ("allow" in reply.headers) == (status == 405)


def test_a_chat_is_refused_in_openais_words(site) -> None:
    reply = site.http.post("/v1/chat/completions", json={"model": "tiny", "messages": []})
    assert error_of(reply) == (404, "invalid_request_error", "model", None)
    assert "not a chat model" in reply.json()["error"]["message"]  # tools look for these words


@pytest.mark.parametrize(
    "model", ["other", "a:b:c", "tiny:step=7", "tiny:", "../x", "", "tiny\n", "tiny:" + "9" * 5000]
)
def test_an_unknown_model_is_not_found(site, model: str) -> None:
    site.make_run("tiny")
    reply = site.http.post("/v1/completions", content=json.dumps({**ASK, "model": model}), headers=JSON)
    assert error_of(reply)[1:] == (
        "invalid_request_error",
        "model",
        "model_not_found" if len(model) < 1000 else "invalid_value",
    )


def test_what_a_retry_does_not_mend_is_not_retried(site) -> None:
    site.make_run("tiny", checkpoint=None)
    reply = site.http.post("/v1/completions", json=ASK)
    assert error_of(reply) == (409, "invalid_request_error", "model", "checkpoint_not_ready")
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("long", (400, "invalid_request_error", "prompt", "context_length_exceeded")),
        ("wrong", (400, "invalid_request_error", None, "invalid_value")),
        ("damaged", (409, "invalid_request_error", "model", "checkpoint_damaged")),
        ("away", (503, "server_error", None, "inference_unavailable")),
        ("odd", (500, "server_error", None, "odd_code")),
    ],
)
def test_what_the_inference_process_refuses_is_translated(site, host, prompt: str, expected: tuple[Any, ...]) -> None:
    for stream in (False, True):
        reply = site.http.post("/v1/completions", json={**ASK, "prompt": prompt, "stream": stream})
        assert error_of(reply) == expected
        assert ("retry-after" in reply.headers, "x-should-retry" in reply.headers) == (
            expected[0] == 503,
            expected[0] == 409,
        )


@pytest.mark.parametrize(
    ("prompt", "param"),
    [([5, UNKNOWN], "prompt[1]"), ([[5, UNKNOWN]], "prompt[0][1]"), (["x", [5, 6, UNKNOWN]], "prompt[1][2]")],
    ids=["one", "list-of-one", "list"],
)
def test_an_unknown_id_is_named_where_the_client_wrote_it(site, host, prompt: Any, param: str) -> None:
    for stream in (False, True):
        reply = site.http.post("/v1/completions", json={**ASK, "prompt": prompt, "stream": stream})
        assert error_of(reply) == (400, "invalid_request_error", param, "invalid_value")


def test_without_an_inference_process_there_is_a_503(site) -> None:
    site.make_run("tiny")
    # the service knows a process of the test before for a second
    reply = eventually(lambda: (sent := site.http.post("/v1/completions", json=ASK)).status_code != 200 and sent)
    assert error_of(reply) == (503, "server_error", None, "inference_unavailable")
    assert int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}, {"echo": True}], ids=str)
def test_a_stream_gives_what_a_plain_reply_gives(site, host, options: dict[str, Any]) -> None:
    ask = {**ASK, "prompt": ["Once upon\u2028a time", "x y"], "n": 2}
    plain = site.http.post("/v1/completions", json=ask | {"echo": options.get("echo", False)})
    *lines, done = chunks_of(site.http.post("/v1/completions", json={**ask, "stream": True, **options}))
    chunks = [json.loads(line) for line in lines]
    joined = ["".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == i) for i in range(4)]
    assert (joined, done) == (texts(plain), "[DONE]")
    reasons = [[c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["index"] == i] for i in range(4)]
    steps = 1 if "echo" in options else 2
    assert reasons == [[None] * (steps - 1) + ["length"]] * 4
    assert len([chunk for chunk in chunks if chunk["choices"]]) == (1 if "echo" in options else 8)
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_" + "0" * 12}
    usages = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    wanted = "stream_options" in options
    assert usages[-1:] == ([plain.json()["usage"]] if wanted else [])
    assert len(usages) == (len(chunks) if wanted else 0)
    assert all(line.isascii() for line in lines)


def test_an_error_after_the_first_chunk_ends_the_stream_without_done(site, host) -> None:
    *_, last = chunks_of(site.http.post("/v1/completions", json={**ASK, "prompt": "breaks", "stream": True}))
    error = json.loads(last)["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "cuda_oom")


def test_a_client_that_leaves_ends_the_stream(site, host) -> None:
    with site.http.stream("POST", "/v1/completions", json={**ASK, "prompt": "endless", "stream": True}) as reply:
        assert next(reply.iter_bytes())
    assert host.left_alone.wait(2)
