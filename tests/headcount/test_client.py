"""The HTTP client against canned replies: problem documents, retries and interrupted streams."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from headcount import client as client_module
from headcount.client import Client, Refused, Unreachable, body_of, messages
from headcount.exit_codes import exit_code
from model_core.errors import ConfigFileNotFound

JOB = "job_" + "0" * 32


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://service", httpx.MockTransport(handler))


def sse(*events: tuple[str, int | None, dict[str, object]]) -> bytes:
    ids = [f"id: {number}\n" if number else "" for _, number, _ in events]
    frames = [f"{id_}event: {e[0]}\ndata: {json.dumps(e[2])}\n\n" for id_, e in zip(ids, events, strict=True)]
    return "".join(frames).encode()


def test_a_broken_stream_goes_on_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RECONNECT_S", 0)
    asked: list[str] = []
    replies = [
        sse(("status", None, {"status": "running"}), ("step", 1, {"seq": 1}), ("step", 2, {"seq": 2})),
        sse(("status", None, {"status": "running"}), ("step", 2, {"seq": 2}), ("step", 3, {"seq": 3})),
        sse(("status", None, {"status": "succeeded"})),
    ]

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Last-Event-ID"])
        return httpx.Response(200, content=replies[len(asked) - 1])

    events = list(client_of(serve).follow(JOB))
    assert [event["seq"] for event in events if "seq" in event] == [1, 2, 3]
    assert asked == ["0", "2", "3"]
    assert events[-1]["status"] == "succeeded"


def test_a_service_that_comes_back_is_followed_and_a_lost_job_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RECONNECT_S", 0)
    replies = iter([httpx.Response(503), httpx.Response(404, json={"code": "job_not_found", "detail": "no job"})])
    with pytest.raises(Refused) as refusal:
        list(client_of(lambda _: next(replies)).follow(JOB))
    assert refusal.value.code == "job_not_found"


def test_a_problem_becomes_one_line_with_place_and_nearest() -> None:
    entries = [
        {"pointer": "/model/n_hed", "detail": "unknown key 'n_hed'", "nearest": ["n_head"]},
        {"pointer": "/model/n_embd", "detail": "12 does not fit", "nearest": []},
    ]
    problem = {"code": "invalid_config", "detail": "wrong", "errors": entries}
    with pytest.raises(Refused) as refusal:
        client_of(lambda _: httpx.Response(422, json=problem)).job(JOB)
    expected = "invalid_config: /model/n_hed: unknown key 'n_hed' (nearest: n_head); /model/n_embd: 12 does not fit"
    assert str(refusal.value) == expected


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (422, "invalid_config", 2),
        (404, "run_not_found", 2),
        (409, "run_busy", 76),
        (429, "queue_full", 1),
        (503, "x", 1),
    ],
)
def test_refusals_have_exit_codes(status: int, code: str, expected: int) -> None:
    assert exit_code(Refused(status, {"code": code})) == expected


def test_an_answer_that_is_no_problem_document_is_still_reported() -> None:
    with pytest.raises(Refused) as refusal:
        client_of(lambda _: httpx.Response(502, text="<html>")).job(JOB)
    assert (refusal.value.status, "http_502" in str(refusal.value)) == (502, True)


def test_a_lost_answer_is_asked_for_again_with_the_same_key() -> None:
    keys: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadTimeout("slow", request=request)
        return httpx.Response(200, json={"id": JOB})

    assert client_of(serve).submit(b"{}", "application/json") == {"id": JOB}
    assert keys[0] == keys[1]


def test_nobody_there_says_how_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(Unreachable, match="headcount up"):
        Client(None, httpx.MockTransport(refuse)).jobs()


def test_names_cannot_leave_their_path() -> None:
    paths: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    client_of(serve).job("../runs")
    assert paths == ["/jobs/..%2Fruns"]


def test_a_file_is_sent_unchanged_and_with_overrides_as_json(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {n_layer: 2}  # two\n")
    assert body_of(str(file)) == (b"model: {n_layer: 2}  # two\n", "application/yaml")
    body, kind = body_of(str(file), ["model.n_embd=64"])
    assert (json.loads(body), kind) == ({"model": {"n_layer": 2, "n_embd": 64}}, "application/json")
    with pytest.raises(ConfigFileNotFound):
        body_of(str(tmp_path / "b.yaml"))


def test_messages_are_read_with_comments_and_many_data_lines() -> None:
    lines = [": ping", "", "id: 3", "event: step", "data: {", "data: }", "", "retry: 1000", "", "data: x", ""]
    first, second = messages(lines)
    assert (first.event, first.id, first.data) == ("step", "3", "{\n}")
    assert (second.event, second.id, second.data) == ("message", None, "x")
