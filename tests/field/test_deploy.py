"""The lines of docs/deploy.md, in a real nginx and a real Caddy in front of a real service."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.polling import eventually
from tests.process import free_port
from tests.service.conftest import TREE, Site, make_site
from tests.service.sse import read_events

__all__ = ["make_site"]  # a fixture

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
PREFIX, NAME, PASSWORD = "/headcount", "lab.example", "only-for-this-test"
JSON = {"Content-Type": "application/json"}


class Proxy:
    """A proxy on loopback whose clients know it as lab.example."""

    def __init__(self, command: list[str], port: int, directory: Path) -> None:
        self.port = port
        self._log = directory / "proxy.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}{PREFIX}", auth=("ada", PASSWORD), trust_env=False,
            headers={"Host": f"{NAME}:{port}"}, timeout=30,
        )  # fmt: skip
        try:
            eventually(self._answers, 20, describe=self._log.read_text)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.http.get("/healthz").status_code < 500
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(timeout=20)


def block(language: str) -> str:
    """The configuration on the page."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def nginx(directory: Path, upstream: str) -> Proxy:
    port = free_port()
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True, check=True
    ).stdout.strip()
    (directory / "headcount.htpasswd").write_text(f"ada:{hashed}\n")
    location = block("nginx").replace("http://127.0.0.1:8000", upstream)
    location = location.replace("headcount.htpasswd", str(directory / "headcount.htpasswd"))
    own = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {directory}/nginx.pid; error_log stderr;\n"
        "events {}\n"
        f"http {{ access_log off; {own} server {{ listen 127.0.0.1:{port}; {location} }} }}\n"
    )
    return Proxy(["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")], port, directory)


def caddy(directory: Path, upstream: str) -> Proxy:
    port = free_port()
    hashed = subprocess.run(
        ["caddy", "hash-password", "--plaintext", PASSWORD], capture_output=True, text=True, check=True
    ).stdout.strip()
    text = block("caddy").replace("lab.example {", f"http://{NAME}:{port} {{").replace("127.0.0.1:8000", upstream[7:])
    text = re.sub(r"<hash from: .*>", hashed, text)
    (directory / "Caddyfile").write_text(f"{{\n admin off\n auto_https off\n}}\n{text}")
    return Proxy(["caddy", "run", "--config", str(directory / "Caddyfile")], port, directory)


PROXIES: dict[str, Callable[[Path, str], Proxy]] = {"nginx": nginx, "caddy": caddy}


@pytest.fixture(params=PROXIES)
def proxied(
    request: pytest.FixtureRequest, make_site: Callable[..., Site], tmp_path: Path
) -> Iterator[tuple[Site, Proxy]]:
    """A service behind a proxy; skipped by name where the proxy is not installed."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed: apt-get install nginx-light caddy")
    site = make_site(hosts=NAME)
    proxy = PROXIES[request.param](tmp_path, site.url)
    yield site, proxy
    proxy.stop()


def test_the_proxy_of_the_page_serves_everything(proxied: tuple[Site, Proxy]) -> None:
    site, proxy = proxied
    http = proxy.http
    assert httpx.get(str(http.base_url), headers=http.headers, trust_env=False).status_code == 401
    job = http.post("/jobs", json=TREE)
    assert job.headers["location"] == job.json()["links"]["self"] == f"{PREFIX}/jobs/{job.json()['id']}"
    assert http.get("/jobs/").json()["data"][0]["id"] == job.json()["id"]
    assert f"'{PREFIX}/openapi.json'" in http.get("/docs").text
    assert http.get("/docs/static/swagger-ui.css").status_code == 200
    assert http.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]

    upload = {"files": ("a.txt", b"One day. \n\n" * 500_000)}  # above the limit of other bodies, and nginx' own of 1 MB
    assert http.post("/datasets/", files=upload, data={"name": "mine"}).status_code == 202
    assert http.post("/jobs", content=json.dumps({"a": "b" * (2 << 20)}), headers=JSON).status_code == 413

    site.make_run("done", checkpoint=bytes(range(256)) * 40_000)
    part = http.get("/runs/done/checkpoints/best/content", headers={"Range": "bytes=1000-"})
    assert (part.status_code, len(part.content)) == (206, 256 * 40_000 - 1000)
    again = http.get(
        "/runs/done/checkpoints/best/content", headers={"Range": "bytes=5-9", "If-Range": part.headers["etag"]}
    )
    assert (again.status_code, again.content) == (206, bytes(range(5, 10)))


def test_a_stream_arrives_as_it_is_written(proxied: tuple[Site, Proxy]) -> None:
    site, proxy = proxied
    job = proxy.http.post("/jobs", json=TREE).json()
    claim = site.claim()
    writer = site.writer(claim)
    seen: list[str] = []

    def follow() -> None:
        for name, _, _ in read_events(proxy.http, f"/jobs/{job['id']}/events"):
            seen.append(name)

    thread = threading.Thread(target=follow)
    thread.start()
    for step, text in enumerate(("one\u2028two", "three\u0085four")):
        site.store.mirror(claim, [writer.append("sample", step=step, texts=[text])])
        eventually(lambda count=step + 1: seen.count("sample") == count, 20)  # before the next is written
    writer.close()
    site.finish(claim)
    thread.join(timeout=20)
    assert seen[-1] == "status"


def test_the_checks_hold_behind_the_proxy(proxied: tuple[Site, Proxy]) -> None:
    _, proxy = proxied
    own = f"http://{NAME}:{proxy.port}"
    for origin, status in ((own, 202), (f"https://{NAME}", 202), ("https://evil.example", 403), ("null", 403)):
        reply = proxy.http.post("/jobs", json=TREE | {"experiment_name": f"a{len(origin)}"}, headers={"Origin": origin})
        assert reply.status_code == status
