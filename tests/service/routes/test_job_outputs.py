"""A job's log: whole, in ranges and streamed; and HEAD requests of streams."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model_core.storage.run import Run
from tests.service.sse import read_events

STREAM = {"Accept": "text/event-stream"}
TEXT = "one\ntwo\nthree\n"

Told = tuple[str, str | None, dict[str, Any]]


def read(site: Any, job: Any, last: str | None = None, **query: Any) -> Iterator[Told]:
    """Name, id and data of each event of a log's stream, as they come."""
    return read_events(site.http, job["links"]["logs"], last, **query)


def text_of(told: Iterator[Told]) -> str:
    return "".join(data["text"] for kind, _, data in told if kind == "log")


def log_path(site: Any, run: str = "tiny") -> Path:
    path = Run(site.layout.run(run)).log
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def append(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


@pytest.fixture
def started(site) -> tuple[dict[str, Any], Any]:
    """A running training that owns its run, and its claim."""
    job = site.submit("tiny")
    claim = site.claim()
    site.writer(claim).close()
    return job, claim


# --- in part -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status", "text", "content_range"),
    [
        ("bytes=0-2", 206, "one", "bytes 0-2/14"),
        ("bytes=4-", 206, "two\nthree\n", "bytes 4-13/14"),
        ("bytes=-6", 206, "three\n", "bytes 8-13/14"),
        ("bytes=4-99999", 206, "two\nthree\n", "bytes 4-13/14"),
        ("bytes=0-1,4-5", 200, TEXT, None),
        ("lines=0-1", 200, TEXT, None),
    ],
)
def test_a_range_is_a_part_of_the_log(site, started, header, status, text, content_range) -> None:
    append(log_path(site), TEXT)
    reply = site.http.get(started[0]["links"]["logs"], headers={"Range": header})
    assert (reply.status_code, reply.text, reply.headers.get("content-range")) == (status, text, content_range)
    assert (reply.headers["accept-ranges"], int(reply.headers["content-length"])) == ("bytes", len(text))


def test_a_range_behind_the_end_is_refused(site, started) -> None:
    for text, header in (("", "bytes=0-"), (TEXT, "bytes=14-"), (TEXT, "bytes=-0")):
        log_path(site).write_text(text)
        reply = site.http.get(started[0]["links"]["logs"], headers={"Range": header})
        assert (reply.status_code, reply.json()["code"]) == (416, "range_not_satisfiable")
        assert reply.headers["content-range"] == f"bytes */{len(text)}"


def test_a_range_that_may_not_hold_any_more_is_answered_with_the_whole(site, started) -> None:
    append(log_path(site), TEXT)
    path = started[0]["links"]["logs"]
    guarded = site.http.get(path, headers={"Range": "bytes=0-2", "If-Range": '"seen"'})
    tail = site.http.get(path, params={"tail": 1}, headers={"Range": "bytes=0-2"})
    assert [(reply.status_code, reply.text) for reply in (guarded, tail)] == [(200, TEXT), (200, "three\n")]


def test_what_the_process_printed_is_a_text_of_its_own(site, started) -> None:
    job, claim = started
    append(site.layout.jobs / claim.id / "child.log", "Thread 0x1 (most recent call first)\n")
    path = job["links"]["logs"]
    before = [site.http.get(path, params=query).text for query in ({}, {"source": "process"}, {"source": "log"})]
    append(log_path(site), TEXT)
    after = [site.http.get(path, params=query).text for query in ({}, {"source": "process"}, {"source": "log"})]
    stacks = "Thread 0x1 (most recent call first)\n"
    assert (before, after) == ([stacks, stacks, ""], [TEXT, stacks, TEXT])
    wrong = site.http.get(path, params={"source": "proces"})
    assert (wrong.status_code, wrong.json()["errors"][0]["nearest"]) == (422, ["process"])


# --- while it grows ----------------------------------------------------------------------------------------------


def test_a_stream_sends_whole_lines_as_they_are_written_and_ends_with_the_job(site) -> None:
    job = site.submit("tiny")
    stream = read(site, job)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, stream)
        time.sleep(0.2)  # it looks before there is anything
        claim = site.claim()
        site.writer(claim).close()
        append(log_path(site), "eins\nzwei\ndr")
    assert first.result() == ("log", "10", {"text": "eins\nzwei\n"})
    append(log_path(site), "ei\nvi")
    assert next(stream) == ("log", "15", {"text": "drei\n"})
    site.finish(claim)
    assert next(stream) == ("log", "17", {"text": "vi"})
    kind, number, status = next(stream)
    assert (kind, number, status["status"], status["terminal"]) == ("status", None, "succeeded", True)
    assert list(stream) == []


def test_no_character_is_cut_wherever_a_line_is_sent(site, started) -> None:
    job, claim = started
    stream = read(site, job)
    long = "añ語😀" * 20_000 + "\n"
    append(log_path(site), long[:-1].encode() + b"\n" + "😀".encode()[:2])
    told = [next(stream)]
    while not told[-1][2]["text"].endswith("\n"):
        told.append(next(stream))
    append(log_path(site), "😀".encode()[2:] + b"\xff\n" + "語".encode()[:2])
    site.finish(claim)
    assert text_of(iter(told)) == long
    assert text_of(stream) == "😀\ufffd\n"
    assert len(told) > 2


def test_a_stream_that_was_cut_goes_on_at_the_byte_where_it_was(site, started) -> None:
    job, claim = started
    lines = [f"Zeile {number}: äöü\n" for number in range(30)]
    seen, last = "", None
    for at in range(0, 30, 10):
        append(log_path(site), "".join(lines[at : at + 10]))
        stream = read(site, job, last)
        _, last, data = next(stream)
        stream.close()
        seen += data["text"]
    site.finish(claim)
    assert seen == "".join(lines)
    assert text_of(read(site, job, last)) == ""
    assert last == str(len(seen.encode()))


def test_a_retried_job_goes_on_in_the_same_log(site, started) -> None:
    job, claim = started
    append(log_path(site), "first\nhal")
    site.finish(claim, "failed")
    told = list(read(site, job))
    assert (text_of(iter(told)), told[-1][2]["status"]) == ("first\nhal", "failed")
    site.store.retry(claim.id)
    stream = read(site, job, told[-2][1])
    append(log_path(site), "f\nsecond\n")
    assert next(stream) == ("log", "18", {"text": "f\nsecond\n"})
    site.finish(site.claim())
    assert [kind for kind, _, _ in stream] == ["status"]


def test_a_retry_from_scratch_begins_another_log(site, started) -> None:
    job, claim = started
    append(log_path(site), TEXT)
    site.finish(claim, "failed")
    told = list(read(site, job))
    assert site.store.retry(claim.id, scratch=True).job.run == "tiny-2"
    again = site.claim()
    site.writer(again).close()
    append(log_path(site, "tiny-2"), "a new beginning\n")
    stream = read(site, job, told[-2][1])
    assert next(stream) == ("log", "tiny-2:16", {"text": "a new beginning\n"})
    append(log_path(site, "tiny-2"), "more\n")
    site.finish(again)
    assert text_of(stream) == "more\n"
    assert text_of(read(site, job, "tiny-2:16")) == "more\n"


def test_until_there_is_a_log_the_stream_sends_what_the_process_printed(site, started) -> None:
    job, claim = started
    printed = site.layout.jobs / claim.id / "child.log"
    append(printed, "importing\n")
    stream = read(site, job)
    kind, place, data = next(stream)
    stream.close()
    assert (kind, place, data["text"]) == ("log", "process:10", "importing\n")

    append(printed, "loading\n")
    stream = read(site, job, place)
    assert next(stream) == ("log", "process:18", {"text": "loading\n"})
    append(printed, "step 1\n")
    append(log_path(site), "step 1\n")
    site.finish(claim)
    assert [(number, data["text"]) for kind, number, data in stream if kind == "log"][-1] == ("7", "step 1\n")

    assert text_of(read(site, job, "process:18")) == "step 1\n"
    assert text_of(read(site, job, "10", source="process")) == "loading\nstep 1\n"
    assert text_of(read(site, job, source="log")) == "step 1\n"


def test_a_stream_can_begin_with_the_last_lines(site, started) -> None:
    append(log_path(site), TEXT)
    site.finish(started[1])
    assert text_of(read(site, started[0], tail=2)) == "two\nthree\n"


def test_a_place_behind_the_end_belongs_to_another_log(site, started) -> None:
    append(log_path(site), TEXT)
    site.finish(started[1])
    assert text_of(read(site, started[0], "15")) == TEXT
    assert text_of(read(site, started[0], "14")) == ""
    wrong = site.http.get(started[0]["links"]["logs"], headers={**STREAM, "Last-Event-ID": "ten"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_parameter")


def test_the_log_of_another_job_that_took_the_run_is_not_sent(site) -> None:
    first = site.submit("tiny")
    site.http.post(first["links"]["cancel"])
    site.submit("tiny")
    site.writer(site.claim()).close()
    append(log_path(site), TEXT)
    assert text_of(read(site, first)) == ""
    assert site.http.get(first["links"]["logs"]).text == ""


def test_a_silent_log_says_that_it_is_there(make_site) -> None:
    site = make_site(ping_s=0.1)
    job = site.submit("tiny")
    with site.http.stream("GET", job["links"]["logs"], headers=STREAM) as reply:
        assert next(line for line in reply.iter_lines() if line.startswith(":")) == ": ping"


# --- HEAD --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", ["events", "logs"])
def test_the_head_of_a_stream_comes_alone_and_at_once(site, started, records: str) -> None:
    began = time.monotonic()
    reply = site.http.head(started[0]["links"][records], headers=STREAM)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert reply.headers["x-request-id"]
    assert time.monotonic() - began < 5
    assert site.http.get("/healthz").status_code == 200  # the connection is still good


def test_a_range_means_nothing_to_a_head(site, started) -> None:
    append(log_path(site), TEXT)
    reply = site.http.head(started[0]["links"]["logs"], headers={"Range": "bytes=0-2"})
    assert (reply.status_code, reply.headers["content-length"], reply.text) == (200, "14", "")


def test_the_head_of_a_generation_ends_the_generation(site) -> None:
    site.make_run()
    host = site.add_host()
    reply = site.http.head("/generate", params={"run": "tiny", "prompt": "endless", "stream": True})
    assert reply.status_code == 200
    assert host.left_alone.wait(5)
