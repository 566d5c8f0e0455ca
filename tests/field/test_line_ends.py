"""Characters that some readers take for the end of a line, in prompts, texts, samples and logs."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.storage.events import EventReader, ascii_line, finite, one_line
from tests.service.conftest import Site, _shared_site, site
from tests.service.sse import read_events

__all__ = ["_shared_site", "site"]  # fixtures

TEXTS = {
    "line separator": "one\u2028two",
    "paragraph separator": "one\u2029two",
    "next line": "one\u0085two",
    "carriage return": "one\rtwo",
    "carriage return and line feed": "one\r\ntwo\r\n",
    "vertical tab and form feed": "one\x0btwo\x0cthree",
    "separators of files and records": "one\x1ctwo\x1dthree\x1efour",
    "NUL": "one\0two",
    "empty lines": "\n\n\none\n\n",
    "field names of an event stream": "data: one\n\nevent: end\ndata: {}\n\n",
    "emoji": "one \N{ROCKET} two",
    "all of them": "\u2028\u2029\u0085\r\n\x0b\x0c\x1c\x1d\x1e\0",
    "half of a pair, as some tokenizers write it": "one \ufffd two",
}
PART = {"line separator": "\u2028", "next line": "\u0085", "NUL": "\0", "carriage return": "\r"}


@pytest.fixture
def run(site: Site) -> Site:
    """A run and an inference process that repeats what follows `say `."""
    site.make_run("tiny")
    site.add_host()
    return site


def frames(body: bytes) -> list[dict[str, str]]:
    """Events as the standard of server-sent events defines them: lines end with CR, LF or both."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    fields = [dict(line.split(": ", 1) for line in block.split("\n") if line) for block in text.split("\n\n")]
    return [one for one in fields if one]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_generation_streams_to_its_end(run: Site, method: str) -> None:
    for name, text in TEXTS.items():
        asked = {"run": "tiny", "prompt": f"say {text}", "seed": 1}
        sent = {"params": {**asked, "stream": "true"}} if method == "GET" else {"json": {**asked, "stream": True}}
        events = frames(run.http.request(method, "/generate", **sent).content)
        assert [json.loads(event["data"])["text"] for event in events[:-1]] == [text] * 3, name
        assert (events[-1]["event"], json.loads(events[-1]["data"])["prompt"]) == ("end", f"say {text}"), name


def test_a_client_that_ends_lines_at_other_characters_too_reads_the_same(run: Site) -> None:
    for name, text in TEXTS.items():
        asked = {"run": "tiny", "prompt": f"say {text}", "stream": True}
        lines = run.http.post("/generate", json=asked).text.splitlines()
        parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert [part.get("text") for part in parts] == [text] * 3 + [None], name
        assert parts[-1]["prompt"] == f"say {text}", name


def test_a_generation_is_whole_as_json(run: Site) -> None:
    for name, text in TEXTS.items():
        asked = {"run": "tiny", "prompt": text}
        replies = (run.http.get("/generate", params=asked), run.http.post("/generate", json={**asked, "stop": text}))
        assert [(reply.status_code, reply.json()["prompt"]) for reply in replies] == [(200, text)] * 2, name


@pytest.mark.parametrize("where", [{"prompt": "one \ud83d"}, {"prompt": "a", "stop": ["\udc00"]}, {"run": "\ud800"}])
@pytest.mark.parametrize("stream", [True, False])
def test_half_of_a_surrogate_pair_is_refused(run: Site, stream: bool, where: dict[str, Any]) -> None:
    body = json.dumps({"run": "tiny", "stream": stream, **where})  # \ud83d, as JavaScript writes it
    reply = run.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in {400, 422}
    assert reply.headers["content-type"] == "application/problem+json"


def test_samples_are_read_as_they_were_written(site: Site) -> None:
    job = site.submit()
    claim = site.claim()
    writer = site.writer(claim)
    for step, text in enumerate(TEXTS.values()):
        writer.append("sample", step=step, texts=[text, "\ud800"])
    site.store.mirror(claim, EventReader(site.layout.run(claim.run) / "events.jsonl").read_new())
    for step, text in enumerate(TEXTS.values(), len(TEXTS)):
        writer.append("sample", step=step, texts=[text, "\ud800"])  # not mirrored: read from the file
    writer.close()
    site.finish(claim)
    streamed = [data["texts"] for name, _, data in read_events(site.http, job["links"]["events"]) if name == "sample"]
    pages = [site.http.get(job["links"]["events"], params={"after": after}).json() for after in (0, len(TEXTS))]
    listed = [event for page in pages for event in page["data"]]
    assert streamed == [[text, "\ufffd"] for text in (*TEXTS.values(), *TEXTS.values())]
    assert [event["texts"] for event in listed if event["type"] == "sample"] == streamed


@pytest.mark.parametrize("separator", PART.values(), ids=PART)
def test_a_log_is_followed_to_its_end(site: Site, separator: str) -> None:
    job = site.submit()
    claim = site.claim()
    site.writer(claim).close()
    text = f"one{separator}two\nthree{separator}{separator}four\n"
    log = site.layout.run(claim.run) / "logs" / "log.txt"
    log.parent.mkdir()
    log.write_bytes(text.encode() + b"\xff broken\n")
    site.finish(claim)
    events = list(read_events(site.http, job["links"]["logs"]))
    assert "".join(data["text"] for name, _, data in events if name == "log") == f"{text}\ufffd broken\n"
    assert [name for name, _, _ in events][-1] == "status"
    assert site.http.get(job["links"]["logs"]).content == log.read_bytes()
    assert site.http.get(job["links"]["logs"], params={"tail": 2}).content == log.read_bytes().split(b"\n", 1)[1]


@given(st.dictionaries(st.text(max_size=9), st.lists(st.text(max_size=9) | st.integers(), max_size=3), max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_value_is_one_line_that_reads_back(value: Any) -> None:
    line = one_line(value)
    assert (len(line.splitlines()), json.loads(line)) == (1, value)


@given(st.dictionaries(st.text(max_size=9), st.lists(st.text(max_size=9) | st.floats(allow_nan=False), max_size=3)))
@settings(max_examples=50, deadline=None)
def test_a_line_of_a_stream_is_ascii_and_reads_back(value: Any) -> None:
    line = ascii_line(finite(value))
    assert (len(line.splitlines()), line.isascii(), json.loads(line)) == (1, True, finite(value))


def test_half_of_a_pair_in_a_stream_is_replaced() -> None:
    assert json.loads(ascii_line(["a\ud83d", "\N{ROCKET}", "\\ud83d"])) == ["a\ufffd", "\N{ROCKET}", "\\ud83d"]


@given(st.text(st.characters(categories=["Cs", "Zl", "Zp", "Cc"]), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_text_has_an_encoding(text: str) -> None:
    assert len(one_line([text]).encode().splitlines()) == 1
