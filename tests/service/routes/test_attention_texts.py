"""Texts over HTTP: sent once, listed with what a client may ask for, and deleted."""

import json
from typing import Any

import pytest

from model_core.schemas import text_id, tokens_id

TEXT = "One day, a cat"
ASK = {"run": "tiny", "text": TEXT}


@pytest.fixture
def host(site) -> Any:
    site.make_run("tiny")
    return site.add_host()


def test_a_text_is_captured_once_and_leads_to_its_pictures_and_numbers(site, host) -> None:
    first, again = site.http.post("/attention", json=ASK), site.http.post("/attention", json=ASK)
    assert (first.status_code, again.status_code, len(host.asked)) == (201, 200, 1)
    view = first.json()
    assert (view["id"], view["text"], view["weights"]) == (text_id(TEXT), TEXT, None)
    assert first.headers["location"] == view["links"]["self"]
    assert again.json() == view
    assert host.asked[0]["max_tokens"] is None  # the whole text, not the length of pictures
    for address in (view["links"]["sheet"], view["links"]["weights"], view["links"]["statistics"]):
        assert site.http.get(address).status_code == 200
    manifest = site.http.get(f"/attention/tiny/{view['id']}", headers={"Accept": "application/json"}).json()
    assert len(manifest["tokens"]) == 5
    assert len(host.asked) == 1


def test_token_ids_take_the_place_of_a_text(site, host) -> None:
    sent = site.http.post("/attention", json={"run": "tiny", "tokens": [1, 2, 3]})
    assert (sent.status_code, sent.json()["id"]) == (201, tokens_id([1, 2, 3]))
    assert host.asked[0]["tokens"] == [1, 2, 3]


def test_a_reply_holds_the_chosen_heads_and_the_record_all(site, host) -> None:
    chosen = site.http.post("/attention", json={**ASK, "weights": "sparse", "layers": [1], "heads": [0]}).json()
    assert [layer["layer"] for layer in chosen["layers"]] == [1]
    [layer] = chosen["weights"]["layers"]
    assert (layer["layer"], [head["head"] for head in layer["heads"]]) == (1, [0])
    whole = site.http.get(chosen["links"]["weights"], params={"format": "sparse"}).json()
    assert [len(layer["heads"]) for layer in whole["layers"]] == [4, 2]
    assert layer["heads"][0] == whole["layers"][1]["heads"][0]


def test_the_list_has_examples_before_texts_page_by_page(site, host) -> None:
    for example in (10, 9, 0):
        assert site.http.get(f"/attention/tiny/{example}").status_code in {200, 404}
    site.http.post("/attention", json=ASK)
    whole = site.http.get("/attention/tiny").json()
    assert [(text["id"], text["kind"]) for text in whole["data"]] == [
        ("0", "example"), ("9", "example"), (text_id(TEXT), "text"),
    ]  # fmt: skip
    [record] = whole["data"][2]["records"]
    assert (record["checkpoint"], record["step"], record["tokens"]) == ("model_best.pt", 3, 5)
    assert record["size_bytes"] > 0
    assert whole["data"][2]["begins"] == TEXT
    assert (whole["limits"]["block_size"], whole["limits"]["max_tokens"]) == (64, 64)
    page = site.http.get("/attention/tiny", params={"limit": 1, "after": "0"})
    assert ([text["id"] for text in page.json()["data"]], page.json()["has_more"]) == (["9"], True)
    assert site.http.get(page.links["next"]["url"]).json()["last_id"] == text_id(TEXT)
    assert len(site.http.get("/attention/tiny", params={"kind": "text"}).json()["data"]) == 1


def test_a_deleted_text_is_gone(site, host) -> None:
    address = f"/attention/tiny/{site.http.post('/attention', json=ASK).json()['id']}"
    assert site.http.delete(address).status_code == 204
    gone = site.http.delete(address)
    assert (gone.status_code, gone.json()["code"]) == (404, "example_not_found")
    assert site.http.get("/attention/tiny").json()["data"] == []
    assert site.http.post("/attention", json=ASK).status_code == 201


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer", "nearest"),
    [
        ({"run": "tiny"}, 422, "invalid_parameter", "/text", []),
        ({**ASK, "tokens": [1]}, 422, "invalid_parameter", "/tokens", []),
        ({**ASK, "text": ""}, 422, "invalid_parameter", "/text", []),
        ({**ASK, "text": "\ud83d"}, 422, "invalid_parameter", "/text", []),
        ({**ASK, "text": "a" * 200_001}, 422, "invalid_parameter", "/text", []),
        ({"run": "tiny", "tokens": []}, 422, "invalid_parameter", "/tokens", []),
        ({"run": "tiny", "tokens": [1, -1]}, 422, "invalid_parameter", "/tokens/1", []),
        ({"run": "tiny", "tokens": [1, 2.5]}, 422, "invalid_parameter", "/tokens/1", [2, 3]),
        ({"run": "tiny", "tokens": [1] * 65}, 422, "prompt_too_long", "/tokens", [64]),
        ({"run": "tiny", "tokens": [1] * 50_000}, 422, "invalid_parameter", "/tokens", []),
        ({**ASK, "text": "long"}, 422, "prompt_too_long", "/text", [64]),
        ({**ASK, "layers": [0, 7]}, 422, "invalid_parameter", "/layers/1", [1]),
        ({**ASK, "heads": [0, 3]}, 422, "invalid_parameter", "/heads/1", [1]),
        ({**ASK, "weights": "spare"}, 422, "invalid_parameter", "/weights", ["sparse"]),
        ({**ASK, "max_tokens": 0}, 422, "invalid_parameter", "/max_tokens", []),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_what_cannot_be_captured_is_named(site, host, body, status, code, pointer, nearest) -> None:
    data = json.dumps(body)  # also of half a surrogate pair
    reply = site.http.post("/attention", content=data, headers={"Content-Type": "application/json"})
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (status, code)
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["nearest"]) == (pointer, nearest)


def test_what_is_not_there_is_named(site, host) -> None:
    assert site.http.post("/attention", json={**ASK, "run": "nowhere"}).json()["code"] == "run_not_found"
    unknown = site.http.get("/attention/tiny/t_0123456789abcdef")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "example_not_found")
    assert site.http.get("/attention/nowhere").json()["code"] == "run_not_found"
    assert site.http.delete("/attention/nowhere/0").json()["code"] == "run_not_found"
    assert site.http.post("/attention", content=b"a" * (1 << 21)).status_code == 413
