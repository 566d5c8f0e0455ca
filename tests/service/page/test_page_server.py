import gzip
import re
from collections.abc import Callable

import httpx
import pytest

from tests.service.conftest import Site

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
VIEWS = ("/", "/jobs", "/jobs/job_x", "/runs/tiny", "/attention/tiny", "/attention/tiny/0")


def shell(http: httpx.Client, path: str = "/", **headers: str) -> httpx.Response:
    return http.get(path, headers={"Accept": BROWSER, **headers})


def static(http: httpx.Client, name: str = "js/main.js") -> str:
    found = re.search(r'src="([^"]+)/js/main\.js"', shell(http).text)
    assert found is not None
    return f"{found[1]}/{name}"


@pytest.mark.parametrize("path", VIEWS)
def test_a_browser_gets_one_shell_at_the_address_of_every_view(site: Site, path: str) -> None:
    reply = shell(site.http, path)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.text == shell(site.http).text
    assert "Accept" in reply.headers["vary"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/html", "image/png,*/*;q=0.5"])
def test_a_program_gets_what_the_routes_answer(site: Site, accept: str) -> None:
    reply = site.http.get("/jobs", headers={"Accept": accept})
    assert reply.json() == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert reply.headers["vary"] == "Accept"


def test_a_person_reads_the_json_of_a_page(site: Site) -> None:
    assert shell(site.http, "/jobs?format=json&limit=1").json()["object"] == "list"
    assert shell(site.http, "/attention/tiny/0?format=png").json()["code"] == "run_not_found"


def test_the_shell_is_asked_for_again_but_sent_once(site: Site) -> None:
    first = shell(site.http)
    assert first.headers["cache-control"] == "no-cache"
    again = shell(site.http, **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_policy_allows_only_files_of_the_service(site: Site) -> None:
    reply = shell(site.http)
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"<script(?! [^>]*src=)|<style|\sstyle=|\son\w+=", reply.text)


def test_static_files_are_kept_for_ever_and_packed_if_the_browser_unpacks(site: Site) -> None:
    path = static(site.http)
    with httpx.stream("GET", f"{site.url}{path}", headers={"Accept-Encoding": "gzip"}, trust_env=False) as packed:
        raw = b"".join(packed.iter_raw())
    plain = site.http.get(path, headers={"Accept-Encoding": "identity"})
    assert gzip.decompress(raw) == plain.content
    assert "immutable" in plain.headers["cache-control"]
    assert plain.headers["content-type"] == "text/javascript; charset=utf-8"
    assert plain.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("path", ["/static/old/js/main.js", "/static/../service/app.py", "/static/", "/nowhere"])
def test_an_address_without_a_thing_is_a_problem_for_programs_and_a_page_for_browsers(site: Site, path: str) -> None:
    program = site.http.get(path)
    assert (program.status_code, program.json()["code"]) == (404, "not_found")
    browser = shell(site.http, path)
    assert (browser.status_code, browser.text) == (404, shell(site.http).text)


def test_errors_of_the_api_stay_problems_for_browsers(site: Site) -> None:
    assert shell(site.http, "/runs/tiny/report").json()["code"] == "run_not_found"


def test_the_page_works_below_a_prefix(make_site: Callable[..., Site]) -> None:
    http = make_site(root_path="/lab/headcount").http
    page = shell(http, "/lab/headcount/runs/tiny")
    assert 'src="/lab/headcount/static/' in page.text
    assert http.get(static(http, "page.css")).headers["content-type"] == "text/css; charset=utf-8"
