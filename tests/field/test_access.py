"""Pages of somebody else: which names the service answers to, and which requests that change something it refuses."""

import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.app import create_app
from service.protocol.access import AccessPolicy
from service.settings import ServiceSettings
from tests.service.conftest import TREE, Site, _shared_site, site
from tests.service.fake_host import Served

__all__ = ["_shared_site", "site"]  # fixtures

# What stands in Host (PORT is the service's own), and whether the service answers.
HOSTS = [
    ("127.0.0.1:PORT", True),
    ("127.0.0.1", True),
    ("localhost:PORT", True),
    ("localhost", True),
    ("localhost:9999", True),  # a tunnel: ssh -L 9999:localhost:8000
    ("LocalHost:PORT", True),
    ("localhost.:PORT", True),
    ("[::1]:PORT", True),
    ("[0:0:0:0:0:0:0:1]:PORT", True),
    ("[::ffff:127.0.0.1]:PORT", True),
    ("127.0.1.1:PORT", True),  # the machine's own name in Debian's /etc/hosts
    ("gpu01.lab.example:443", True),  # in HEADCOUNT_HOSTS
    ("GPU01.lab.example", True),
    ("10.0.0.5:8000", True),  # in HEADCOUNT_HOSTS
    ("[fd00::5]:8000", True),  # in HEADCOUNT_HOSTS
    ("evil.example:PORT", False),
    ("evil.example", False),
    ("localhost.evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("evil.example#localhost", False),
    ("localhost@evil.example", False),
    ("evil.example, localhost", False),
    ("xlocalhost", False),
    ("lab.example", False),
    ("192.168.1.5:PORT", False),
    ("[::2]:PORT", False),
    ("[::1", False),
    ("localhost:port", False),
    ("", False),
]
# What a browser says about the page that sends a request (HOST is the service's own), and whether it may write.
SENDERS = [
    ({}, True),  # no browser
    ({"Origin": "http://HOST"}, True),
    ({"Origin": "http://HOST", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),  # typed by the person
    ({"Origin": "http://localhost:PORT"}, True),
    ({"Origin": "https://gpu01.lab.example"}, True),  # a proxy with TLS in front
    ({"Origin": "https://gpu01.lab.example:8443"}, True),
    ({"Origin": "http://evil.example"}, False),
    ({"Origin": "https://evil.example:PORT"}, False),
    ({"Origin": "http://localhost.evil.example:PORT"}, False),
    ({"Origin": "null"}, False),  # a sandboxed frame, a file, a form with no-referrer
    ({"Origin": "file://"}, False),
    ({"Origin": "chrome-extension://abcdef"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://127.0.0.1:1"}, False),  # another program's page on this machine
    ({"Origin": "http://HOST.evil.example"}, False),
    ({"Origin": "http://evil.example@HOST"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Origin": "http://HOST", "Sec-Fetch-Site": "cross-site"}, False),
    ({"Origin": "http://localhost:1", "Sec-Fetch-Site": "same-site"}, False),
]
# Requests that change something; the first three are what a form can send without asking first.
WRITES = [
    ("POST", "/jobs", {"content": b"experiment_name: x", "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/datasets", {"files": {"files": ("a.txt", b"One day")}, "data": {"name": "mine"}}),
    ("POST", "/jobs/job_x/cancel", {"data": {"a": "b"}}),
    ("POST", "/jobs", {"json": TREE}),
    ("POST", "/jobs/", {"json": TREE}),
    ("POST", "/generate", {"json": {"run": "tiny", "prompt": "a"}}),
    ("POST", "/runs/tiny/exports", {}),
    ("PUT", "/runs/tiny/checkpoints/best/pin", {}),
    ("PATCH", "/jobs/job_x", {"json": {"priority": 1}}),
    ("DELETE", "/datasets/words", {}),
    ("DELETE", "/runs/tiny/checkpoints/best", {}),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with further names; no test here gets as far as its Redis."""
    hosts = "gpu01.lab.example, http://10.0.0.5:8000/,fd00::5,"
    data = tmp_path_factory.mktemp("named")
    served = Served(create_app(ServiceSettings(data=data, hosts=hosts, redis_url="redis://127.0.0.1:1/0")))
    with httpx.Client(base_url=served.url, trust_env=False) as http:
        yield http
    served.stop()


def filled(text: str, url: httpx.URL) -> str:
    return text.replace("HOST", f"{url.host}:{url.port}").replace("PORT", str(url.port))


def code_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


@pytest.mark.parametrize(("host", "is_ours"), HOSTS)
def test_host_must_be_a_name_of_the_service(named: httpx.Client, host: str, is_ours: bool) -> None:
    reply = named.get("/healthz", headers={"Host": filled(host, named.base_url)})
    assert reply.status_code == (200 if is_ours else 421)
    assert is_ours or reply.json()["code"] == "misdirected_host"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_no_address_answers_to_a_foreign_name(named: httpx.Client, method: str) -> None:
    for path in ("/", "/docs", "/openapi.json", "/jobs", "/nowhere", "/docs/static/favicon.png"):
        assert named.request(method, path, headers={"Host": "evil.example"}).status_code == 421, path


@pytest.mark.parametrize(("headers", "may_write"), SENDERS)
def test_a_page_may_write_only_if_it_is_ours(named: httpx.Client, headers: dict[str, str], may_write: bool) -> None:
    sent = {name: filled(value, named.base_url) for name, value in headers.items()}
    reply = named.post("/configs/validate", content=b"[]", headers={**sent, "Content-Type": "application/json"})
    assert code_of(reply) == ((400, "malformed_body") if may_write else (403, "forbidden"))
    assert named.get("/healthz", headers=sent).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_no_request_that_changes_something_is_open_to_foreign_pages(
    named: httpx.Client, method: str, path: str, body: dict[str, Any]
) -> None:
    request = named.build_request(method, path, **body)
    request.headers["Origin"] = "http://evil.example"
    assert code_of(named.send(request)) == (403, "forbidden")


def test_a_refused_upload_leaves_nothing(site: Site) -> None:
    files = {"files": ("a.txt", b"One day. " * 100_000)}
    reply = site.http.post("/datasets", files=files, data={"name": "mine"}, headers={"Origin": "null"})
    assert code_of(reply) == (403, "forbidden")
    assert not list(site.settings.data.glob("uploads/*"))


def exchange(url: str, request: str) -> bytes:
    """Send bytes as they are; the whole reply."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET /healthz HTTP/1.0\n\n", 421),  # no Host at all
        ("GET /healthz HTTP/1.1\nConnection: close\n\n", 400),
        ("GET /healthz HTTP/1.1\nHost: localhost\nHost: evil.example\nConnection: close\n\n", 400),
        ("GET /healthz HTTP/1.0\nHost:   localhost  \n\n", 200),
        ("GET http://localhost/healthz HTTP/1.1\nHost: localhost\nConnection: close\n\n", 200),  # to a proxy
        ("GET HTTP://LOCALHOST:80/healthz HTTP/1.1\nHost: localhost\nConnection: close\n\n", 200),
        ("GET http://evil.example/healthz HTTP/1.1\nHost: localhost\nConnection: close\n\n", 421),
        ("GET http://evil.example/healthz HTTP/1.1\nHost: evil.example\nConnection: close\n\n", 421),
        ("GET http://evil.example HTTP/1.1\nHost: localhost\nConnection: close\n\n", 421),
        (
            "POST http://localhost/jobs HTTP/1.1\nHost: localhost\nOrigin: http://evil.example\nConnection: close\n\n",
            403,
        ),
    ],
)
def test_requests_by_hand(named: httpx.Client, request_head: str, status: int) -> None:
    assert exchange(str(named.base_url), request_head).split(b" ", 2)[1] == str(status).encode()


# `--host 0.0.0.0`: people use this machine's address, which no DNS record can fake.
ARRIVALS = [
    ("192.168.1.5", "192.168.1.5:8000", True),
    ("::ffff:192.168.1.5", "192.168.1.5:8000", True),
    ("fd00::5", "[fd00:0::5]:8000", True),
    ("192.168.1.5", "192.168.1.6:8000", False),
    ("192.168.1.5", "192.168.1.5.evil.example", False),
    ("/run/headcount.sock", "localhost", True),
    ("/run/headcount.sock", "evil.example", False),
]


@pytest.mark.parametrize(("server", "host", "is_ours"), ARRIVALS)
def test_the_address_that_a_connection_arrives_at_is_a_name(server: str, host: str, is_ours: bool) -> None:
    scope = {"type": "http", "method": "GET", "server": (server, 8000)}
    assert (AccessPolicy(()).refusal(scope, {b"host": host.encode()}) is None) == is_ours


@pytest.mark.parametrize("hosts", ["*", "gpu 01", "http://", "a/b", "[::1", "gpu01;gpu02/"])
def test_a_name_that_is_none_is_refused_at_the_start(hosts: str) -> None:
    with pytest.raises(ValueError, match="HEADCOUNT_HOSTS"):
        create_app(ServiceSettings(hosts=hosts))
