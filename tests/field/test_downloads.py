"""A file that is replaced or deleted while it is sent: a client gets the old one or the new one, whole."""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from model_core.storage.run import Run
from service.logs import text_response
from service.routes.checkpoints import send_content
from tests.polling import eventually
from tests.service.conftest import NO_TENSORS, Site, _shared_site, site
from worker.jobs.schemas import Job

__all__ = ["_shared_site", "site"]  # fixtures

OLD, NEW = b"old weights " * 400_000, b"NEW" * 700_001
CONTENT = "/runs/tiny/checkpoints/best/content"


def received(response: Response) -> tuple[dict[str, str], bytes]:
    """What a client gets of a response whose headers were built before the file was replaced."""
    messages: list[Any] = []
    head = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    asyncio.run(response(head, receive, send))
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return headers, b"".join(message.get("body", b"") for message in messages)


WAYS: dict[str, Callable[[Site], object]] = {
    "replaced by another checkpoint": lambda site: site.publish(Run.open(site.layout.run("tiny")), NEW),
    "deleted with its run": lambda site: shutil.rmtree(site.layout.run("tiny")),
    "renamed away": lambda site: (site.layout.run("tiny") / "model_best.pt").rename(site.settings.data / "other"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("byte_range", "expected"),
    [(None, OLD), ("bytes=1000-", OLD[1000:]), ("bytes=-7", OLD[-7:]), ("bytes=5-9", OLD[5:10])],
)
def test_a_download_that_has_begun_is_the_old_file(
    site: Site, way: str, byte_range: str | None, expected: bytes
) -> None:
    site.make_run("tiny", checkpoint=OLD)
    response = send_content(site.layout, "tiny", "best", "pt", byte_range=byte_range, if_range=None)
    WAYS[way](site)
    headers, body = received(response)
    assert body == expected
    assert int(headers["content-length"]) == len(expected)


def test_an_export_that_is_deleted_while_it_is_sent_arrives(site: Site) -> None:
    folder = site.add_export(site.make_run("tiny"))
    response = send_content(site.layout, "tiny", "best", "safetensors", byte_range=None, if_range=None)
    shutil.rmtree(folder)
    assert received(response)[1] == NO_TENSORS


def test_a_tag_belongs_to_the_bytes_that_came_with_it(site: Site) -> None:
    run = site.make_run("tiny", checkpoint=OLD)
    response = send_content(site.layout, "tiny", "best", "pt", byte_range=None, if_range=None)
    site.publish(run, NEW)
    headers, _ = received(response)
    resumed = site.http.get(CONTENT, headers={"Range": "bytes=10-", "If-Range": headers["etag"]})
    assert (resumed.status_code, resumed.content) == (200, NEW)


def test_every_download_is_one_file_while_training_replaces_it(site: Site) -> None:
    run = site.make_run("tiny", checkpoint=OLD)
    stopped = threading.Event()

    def train() -> None:
        while not stopped.is_set():
            for data in (NEW, OLD):
                site.publish(run, data)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        replies = [site.http.get(CONTENT) for _ in range(30)]
    finally:
        stopped.set()
        thread.join()
    assert {reply.status_code for reply in replies} == {200}
    assert all(reply.content in {OLD, NEW} for reply in replies)
    tags = {(reply.headers["etag"], reply.content == OLD) for reply in replies}
    assert len({tag for tag, _ in tags}) == len(tags)


def job_with_log(site: Site, text: bytes) -> tuple[Job, Path]:
    job = site.submit()
    claim = site.claim()
    site.writer(claim).close()
    log = site.layout.run(claim.run) / "logs" / "log.txt"
    log.parent.mkdir()
    log.write_bytes(text)
    return site.store.get(job["id"]), log


@pytest.mark.parametrize(
    ("tail", "byte_range", "expected"), [(None, None, OLD), (1, None, OLD), (None, "bytes=-9", OLD[-9:])]
)
def test_a_log_that_is_replaced_while_it_is_sent_is_the_old_one(
    site: Site, tail: int | None, byte_range: str | None, expected: bytes
) -> None:
    job, log = job_with_log(site, OLD)
    response = text_response(site.layout, job, None, tail=tail, byte_range=byte_range)
    other = log.with_name("other.txt")
    other.write_bytes(b"short")
    other.replace(log)
    assert received(response)[1] == expected
    assert site.http.get(f"/jobs/{job.id}/logs").content == b"short"


def test_a_log_that_grows_while_it_is_sent_ends_where_it_was_said_to_end(site: Site) -> None:
    job, log = job_with_log(site, OLD)
    response = text_response(site.layout, job, None, tail=None, byte_range=None)
    with log.open("ab") as file:
        file.write(NEW)
    assert received(response)[1] == OLD


def test_a_picture_whose_record_is_deleted_is_captured_again(site: Site) -> None:
    site.make_run("tiny")
    site.add_host()
    assert site.http.get("/attention/tiny/0").status_code == 200
    stopped = threading.Event()

    def forget() -> None:
        while not stopped.wait(0.005):
            with contextlib.suppress(FileNotFoundError):  # a record that is being written was moved to its place
                for part in site.layout.attention_of("tiny").glob("**/*.npy"):
                    part.unlink(missing_ok=True)

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        replies = [site.http.get("/attention/tiny/0", params={"dpi": 10 + number}) for number in range(20)]
    finally:
        stopped.set()
        thread.join()
    assert {reply.status_code for reply in replies} <= {200, 503}
    assert all(reply.content.startswith(b"\x89PNG") for reply in replies if reply.status_code == 200)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_descriptor_stays_open(site: Site, method: str) -> None:
    site.make_run("tiny", checkpoint=OLD)
    for _ in range(3):
        site.http.request(method, CONTENT)
        with site.http.stream(method, CONTENT) as reply:  # left before its end
            next(reply.iter_raw(100), None)
        site.http.get(CONTENT, headers={"Range": f"bytes={len(OLD)}-"})
    eventually(lambda: not [path for path in Path("/proc/self/fd").iterdir() if "model_best.pt" in _target(path)])


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
