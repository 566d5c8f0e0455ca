"""Addresses with a slash at the end or behind a prefix, packed bodies, and query parameters that do not exist."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.protocol.addresses import AddressResolver
from service.settings import ServiceSettings
from tests.service.conftest import TREE, Site, _shared_site, make_site, site

__all__ = ["_shared_site", "make_site", "site"]  # fixtures

PREFIX = "/lab/headcount"
READS = [
    "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/configs", "/configs/baseline", "/jobs", "/jobs/JOB",
    "/jobs/JOB/events", "/jobs/JOB/logs", "/jobs/JOB/metrics", "/runs", "/runs/tiny", "/runs/tiny/report",
    "/runs/tiny/checkpoints", "/runs/tiny/checkpoints/best", "/runs/tiny/checkpoints/best/content",
    "/runs/tiny/exports", "/datasets", "/datasets/words", "/datasets/words/statistics", "/datasets/words/examples",
    "/datasets/words/examples/0", "/generate?run=tiny&seed=1", "/attention/tiny/0", "/attention/tiny/0/layer00.png",
    "/workers", "/gpus", "/queue", "/docs/static/favicon.png", "/nowhere", "/jobs/job_x", "/runs/a b",
]  # fmt: skip


@pytest.fixture
def full(site: Site) -> Site:
    """A service with something at most addresses."""
    site.make_run("tiny")
    site.add_host()
    site.job = site.submit("other")["id"]  # type: ignore[attr-defined]
    return site


def told(reply: httpx.Response) -> tuple[int, str | None, Any]:
    """Status, type and content, without what differs between two requests."""
    kind = reply.headers.get("content-type")
    if kind and kind.endswith("json"):
        body = {name: value for name, value in reply.json().items() if name not in {"request_id", "detail"}}
        return reply.status_code, kind, body
    return reply.status_code, kind, reply.content


# --- a slash at the end ----------------------------------------------------------------------------------------


def test_an_address_means_the_same_with_a_slash_at_its_end(full: Any) -> None:
    for path in READS:
        plain, mark, query = path.replace("JOB", full.job).partition("?")
        answer = told(full.http.get(f"{plain}{mark}{query}"))
        assert told(full.http.get(f"{plain}/{mark}{query}")) == answer, path
    assert told(full.http.get("/datasets//")) == told(full.http.get("/datasets"))


def test_a_body_is_not_lost_at_an_address_with_a_slash(site: Site) -> None:
    site.make_run("tiny")
    site.add_host()
    large = {"files": ("a.txt", b"One day. \n\n" * 200_000)}  # above the limit of other bodies
    assert site.http.post("/datasets/", files=large, data={"name": "mine"}).status_code == 202
    job = site.http.post("/jobs/?run=renamed", json=TREE)
    assert (job.status_code, job.json()["run"]) == (202, "renamed")
    assert site.http.post("/jobs/?validate_only=true", json=TREE).status_code == 200
    assert site.http.post("/generate/", json={"run": "tiny", "prompt": "say hello"}).json()["prompt"] == "say hello"
    assert site.http.post(f"{job.headers['location']}/cancel/").json()["status"] == "cancelled"
    assert site.http.patch(f"{job.headers['location']}/", json={"priority": 3}).json()["priority"] == 3
    assert site.http.put("/runs/tiny/checkpoints/best/pin/").json()["pinned"] is True
    assert site.http.post("/configs/validate/", json=TREE).status_code == 200
    assert site.http.delete(f"{job.headers['location']}/").status_code == 204


def test_a_slash_that_is_encoded_belongs_to_the_name(full: Any) -> None:
    assert full.http.get("/runs/tiny%2F").status_code == 404


def test_a_wrong_method_names_the_right_ones_behind_a_slash(site: Site) -> None:
    reply = site.http.delete("/jobs/")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD, POST")


# --- a path prefix ---------------------------------------------------------------------------------------------


def links_of(reply: httpx.Response) -> list[str]:
    """Addresses in the `links` of a reply and its parts."""
    if reply.request.url.path == "/openapi.json" or not reply.headers.get("content-type", "").endswith("json"):
        return []
    data = reply.json().get("data")
    views = [reply.json(), *(data if isinstance(data, list) else [])]
    listed = [value for view in views for value in view.get("links", {}).values()]
    return [link for value in listed for link in (value if isinstance(value, list) else [value]) if link]


def behind(http: httpx.Client, path: str, **options: Any) -> httpx.Response:
    """Ask as a proxy does that removes the prefix from the path."""
    return http.get(path, headers={"X-Forwarded-Prefix": PREFIX, **options.pop("headers", {})}, **options)


def test_every_link_of_a_reply_has_the_prefix(full: Any) -> None:
    for path in READS:
        asked, accept = path.replace("JOB", full.job), {"Accept": "application/json, */*;q=0.1"}
        plain, prefixed = full.http.get(asked, headers=accept), behind(full.http, asked, headers=accept)
        assert told(plain)[:2] == told(prefixed)[:2], path
        assert links_of(prefixed) == [f"{PREFIX}{link}" for link in links_of(plain)], path


def test_locations_and_next_pages_have_the_prefix(site: Site) -> None:
    forwarded = {"X-Forwarded-Prefix": PREFIX, "X-Forwarded-Proto": "https", "Host": "localhost"}
    job = site.http.post("/jobs", json=TREE, headers=forwarded)
    assert job.headers["location"] == job.json()["links"]["self"] == f"{PREFIX}/jobs/{job.json()['id']}"
    site.submit("second")
    page = site.http.get("/jobs?limit=1", headers=forwarded)
    assert page.links["next"]["url"].startswith(f"https://localhost{PREFIX}/jobs?limit=1&after=job_")


def test_the_documentation_works_behind_a_prefix(site: Site) -> None:
    page = behind(site.http, "/docs").text
    assert f"'{PREFIX}/openapi.json'" in page
    assert f"{PREFIX}/docs/static/swagger-ui.css" in page
    assert behind(site.http, "/openapi.json").json()["servers"] == [{"url": PREFIX}]
    assert "servers" not in site.http.get("/openapi.json").json()
    assert behind(site.http, f"{PREFIX}/docs/static/swagger-ui.css").status_code == 200


@pytest.mark.parametrize("header", [PREFIX, f"{PREFIX}/"])
@pytest.mark.parametrize("kept", ["", PREFIX])
def test_a_proxy_may_remove_the_prefix_or_keep_it(site: Site, kept: str, header: str) -> None:
    job = site.submit()["id"]
    reply = site.http.get(f"{kept}/jobs/{job}/", headers={"X-Forwarded-Prefix": header})
    assert reply.json()["links"]["self"] == f"{PREFIX}/jobs/{job}"


# What a proxy may send as X-Forwarded-Prefix and is no path.
NO_PREFIX = [
    "//evil.example",
    "https://evil.example",
    "/a/../b",
    "/a b",
    "/a?b",
    "/a\\b",
    "/a,/b",
    "a",
    "/",
    "",
    "/a%2fb",
]


def test_a_prefix_that_is_no_path_is_ignored(site: Site) -> None:
    for header in NO_PREFIX:
        reply = site.http.get("/", headers={"X-Forwarded-Prefix": header})
        assert reply.json()["links"]["jobs"] == "/jobs", header


def test_a_prefix_of_the_service_is_that_of_its_settings(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="lab/headcount/")
    for path in ("/jobs", f"{PREFIX}/jobs", f"{PREFIX}/jobs/"):
        reply = site.http.post(path, json={**TREE, "experiment_name": f"run{len(path)}"})
        assert (reply.status_code, reply.headers["location"][: len(PREFIX)]) == (202, PREFIX)
    large = {"files": ("a.txt", b"One day. \n\n" * 200_000)}
    assert site.http.post(f"{PREFIX}/datasets", files=large, data={"name": "mine"}).status_code == 202
    missing = site.http.get(f"{PREFIX}/nowhere").json()
    assert f"{PREFIX}/docs" in missing["detail"]
    assert site.http.delete(f"{PREFIX}/configs/validate").headers["allow"] == "POST"
    tokenizer = TREE["data"]["tokenizer"]
    refused = site.http.post("/jobs", json={**TREE, "data": {"dataset": "new", "tokenizer": tokenizer}}).json()
    assert refused["request"]["path"] == f"{PREFIX}/datasets"


@pytest.mark.parametrize("root_path", ["http://lab/headcount", "/lab//x", "/a b", "/a/../b?c"])
def test_a_prefix_of_the_settings_that_is_no_path_is_refused_at_the_start(root_path: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        create_app(ServiceSettings(root_path=root_path))


# Who sends X-Forwarded-Prefix (the address of the connection, and FORWARDED_ALLOW_IPS), and whether it counts.
PROXIES = [
    (("127.0.0.1", 5000), "127.0.0.1", True),
    (("192.168.1.5", 5000), "127.0.0.1", False),
    (("192.168.1.5", 0), "127.0.0.1", True),  # uvicorn has put the client's address in the place of a trusted proxy's
    (("172.18.0.1", 5000), "127.0.0.1, 172.18.0.0/16", True),
    (("172.18.0.1", 5000), "172.18.0.1", True),
    (("172.19.0.1", 5000), "172.18.0.0/16", False),
    (("::1", 5000), "127.0.0.1,::1", True),
    (("192.168.1.5", 5000), "*", True),
    (None, "127.0.0.1", False),  # a socket of the file system
    (None, "*", True),
]


@pytest.mark.parametrize(("client", "trusted", "counts"), PROXIES)
def test_only_a_trusted_proxy_sets_the_prefix(client: Any, trusted: str, counts: bool) -> None:
    scope = {"type": "http", "path": "/jobs", "root_path": "", "headers": [], "client": client}
    resolved, _ = AddressResolver("", trusted).resolve(scope, {b"x-forwarded-prefix": PREFIX.encode()})
    assert resolved["path"] == (f"{PREFIX}/jobs" if counts else "/jobs")


# --- packed bodies ---------------------------------------------------------------------------------------------

BODY = json.dumps(TREE).encode()
ONE, TWO = BODY[:100], BODY[100:]


def deflate(data: bytes, wbits: int = 15) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(data) + packer.flush()


# Content-Encoding and body, and the status of a validation.
PACKED: dict[str, tuple[str, bytes, int]] = {
    "gzip": ("gzip", gzip.compress(BODY), 200),
    "gzip, upper case": ("GZIP", gzip.compress(BODY), 200),
    "gzip under its old name": ("x-gzip", gzip.compress(BODY), 200),
    "gzip in two members": ("gzip", gzip.compress(ONE) + gzip.compress(TWO), 200),
    "gzip with an empty member": ("gzip", gzip.compress(b"") + gzip.compress(BODY), 200),
    "deflate": ("deflate", deflate(BODY), 200),
    "deflate without a header, as some clients send it": ("deflate", deflate(BODY, -15), 200),
    "not packed, and said so": ("identity", BODY, 200),
    "gzip, identity": ("gzip, identity", gzip.compress(BODY), 200),
    "an empty header": ("", BODY, 200),
    "Brotli": ("br", BODY, 415),
    "Zstandard": ("zstd", BODY, 415),
    "compress": ("compress", BODY, 415),
    "packed twice": ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415),
    "deflate, then gzip": ("deflate, gzip", gzip.compress(deflate(BODY)), 415),
    "a word": ("utf-8", BODY, 415),
    "not packed, and not said so": ("gzip", BODY, 400),
    "gzip called deflate": ("deflate", gzip.compress(BODY), 400),
    "deflate called gzip": ("gzip", deflate(BODY), 400),
    "gzip, cut off": ("gzip", gzip.compress(BODY)[:-20], 400),
    "gzip, cut off in its checksum": ("gzip", gzip.compress(BODY)[:-1], 400),
    "gzip, one byte": ("gzip", b"\x1f", 400),
    "deflate, cut off": ("deflate", deflate(BODY)[:-20], 400),
    "deflate, one byte": ("deflate", b"\x78", 400),
    "gzip with something behind it": ("gzip", gzip.compress(BODY) + b"garbage", 400),
    "deflate with something behind it": ("deflate", deflate(BODY) + b"garbage", 400),
    "gzip with a wrong checksum": ("gzip", gzip.compress(BODY)[:-8] + bytes(8), 400),
    "nothing": ("gzip", b"", 400),  # an empty body is no JSON
    "nothing, packed": ("gzip", gzip.compress(b""), 400),
    "a bomb": ("gzip", gzip.compress(bytes(1 << 24)), 413),
    "a bomb of deflate": ("deflate", deflate(bytes(1 << 24)), 413),
    "a bomb in many members": ("gzip", gzip.compress(b" " * 65_536) * 1000, 413),
    "as large as a body may be": ("gzip", gzip.compress(BODY + b" " * ((1 << 20) - len(BODY))), 200),
    "one byte larger": ("gzip", gzip.compress(BODY + b" " * ((1 << 20) - len(BODY) + 1)), 413),
}  # fmt: skip
CODES = {400: "malformed_body", 413: "body_too_large", 415: "unsupported_media_type"}


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_packed_body_is_read(site: Site, is_chunked: bool) -> None:
    for name, (coding, body, status) in PACKED.items():
        step = 1000 if len(body) < 10_000 else 60_000
        pieces = (body[at : at + step] for at in range(0, len(body), step)) if is_chunked else body
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        reply = site.http.post("/configs/validate", content=pieces, headers=headers)
        assert (reply.status_code, reply.json().get("code")) == (status, CODES.get(status)), name


def test_a_coding_that_is_not_read_names_those_that_are(site: Site) -> None:
    reply = site.http.post("/jobs", content=BODY, headers={"Content-Encoding": "br"})
    assert (reply.status_code, reply.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert all(known in reply.json()["detail"] for known in ("gzip", "deflate"))


def packed(http: httpx.Client, method: str, path: str, **body: Any) -> httpx.Response:
    request = http.build_request(method, path, **body)
    data = gzip.compress(request.read())
    headers = {"Content-Type": request.headers["content-type"], "Content-Encoding": "gzip"}
    return http.request(method, path, content=data, headers=headers)


def test_every_door_that_reads_a_body_reads_a_packed_one(site: Site) -> None:
    site.make_run("tiny")
    site.add_host()
    job = packed(site.http, "POST", "/jobs", json=TREE | {"experiment_name": "packed"}).json()
    assert job["run"] == "packed"
    yaml = gzip.compress(b"experiment_name: as-yaml\njob: {preset: quickstart}\n")
    kind = {"Content-Type": "application/yaml", "Content-Encoding": "gzip"}
    assert site.http.post("/jobs", content=yaml, headers=kind).json()["run"] == "as-yaml"
    assert packed(site.http, "PATCH", f"/jobs/{job['id']}", json={"priority": 7}).json()["priority"] == 7
    said = packed(site.http, "POST", "/generate", json={"run": "tiny", "prompt": "say hello"})
    assert said.json()["prompt"] == "say hello"
    assert packed(site.http, "POST", "/runs/tiny/exports", json={"checkpoint": "best"}).status_code == 202
    text = b"One day. \n\n" * 200_000  # above the limit of other bodies
    upload = packed(site.http, "POST", "/datasets", files={"files": ("a.txt", text)}, data={"name": "mine"})
    assert upload.status_code == 202
    [kept] = site.settings.data.glob("uploads/mine/*/*")
    assert kept.read_bytes() == text


def test_an_upload_that_unpacks_to_too_much_is_refused(make_site: Callable[..., Site]) -> None:
    site = make_site(max_upload_bytes=1 << 20)
    bomb = packed(site.http, "POST", "/datasets", files={"files": ("a.txt", bytes(1 << 24))}, data={"name": "mine"})
    assert (bomb.status_code, bomb.json()["code"]) == (413, "body_too_large")
    assert not list(site.settings.data.glob("uploads/**/*.txt"))


def test_a_coding_of_a_request_without_a_body_means_nothing(site: Site) -> None:
    assert site.http.get("/healthz", headers={"Content-Encoding": "br"}).status_code == 200
    job = site.submit()["id"]
    assert site.http.post(f"/jobs/{job}/cancel", headers={"Content-Encoding": "gzip"}).status_code == 202


# --- query parameters ------------------------------------------------------------------------------------------

PAGE = ["after", "limit"]
# Method, address with a parameter that does not exist, and the parameters that do.
UNKNOWN = [
    ("GET", "/jobs?stat=queued", [*PAGE, "status", "kind", "run", "dataset"]),
    ("GET", "/jobs?page=2", [*PAGE, "status", "kind", "run", "dataset"]),
    ("POST", "/jobs?dry_run=true", ["run", "validate_only"]),
    ("GET", "/jobs/JOB?verbose=1", []),
    ("POST", "/jobs/JOB/cancel?force=1", []),
    ("POST", "/jobs/JOB/retry?form=scratch", ["from"]),
    ("DELETE", "/jobs/JOB?artefacts=true", ["artifacts"]),
    ("GET", "/jobs/JOB/events?since=3", PAGE),
    ("GET", "/jobs/JOB/logs?lines=3", ["tail", "source"]),
    ("GET", "/jobs/JOB/metrics?metric=loss", ["name", "max_points", "format"]),
    ("GET", "/runs?offset=3", PAGE),
    ("GET", "/runs/tiny/checkpoints/best/content?fmt=pt", ["format"]),
    ("POST", "/runs/tiny/exports?checkpoint=final", []),
    ("GET", "/datasets/words/examples?page=2", PAGE),
    ("GET", "/generate?run=tiny&max_tokens=5", ["max_new_tokens", "min_new_tokens", "prompt", "temperature"]),
    ("POST", "/generate?max_new_tokens=5", []),
    ("GET", "/attention/tiny/0?layers=1", ["layer", "head", "cmap", "labels"]),
    ("GET", "/queue?n=5", ["limit"]),
]  # fmt: skip


def test_an_unknown_query_parameter_names_those_there_are(full: Any) -> None:
    for method, path, known in UNKNOWN:
        body = {"json": {"run": "tiny", "prompt": "a"}} if method == "POST" else {}
        reply = full.http.request(method, path.replace("JOB", full.job), **body)
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter"), path
        name = path.rpartition("&" if "&" in path else "?")[2].partition("=")[0]
        [error] = [error for error in reply.json()["errors"] if error["pointer"] == f"/{name}"]
        assert all(word in error["detail"] for word in known), path
        assert set(error["nearest"]) <= set(known), path
