"""Pictures and statistics of attention over HTTP, with their caching."""

import io
from typing import Any

import pytest
from PIL import Image

SHEET = "/attention/tiny/0"


@pytest.fixture
def host(site) -> Any:
    site.make_run("tiny")
    return site.add_host()


def test_it_is_captured_once_and_drawn_from_what_was_captured(site, host) -> None:
    sheet = site.http.get(SHEET)
    assert (sheet.status_code, sheet.headers["content-type"]) == (200, "image/png")
    pictures = {sheet.content}
    for params in ({"layer": 0}, {"layer": 0, "head": 1}, {"layer": 0, "cmap": "magma"}, {"layer": 1}, {"dpi": 60}):
        reply = site.http.get(SHEET, params=params, headers={"Accept": "image/png"})
        assert Image.open(io.BytesIO(reply.content)).format == "PNG"
        pictures.add(reply.content)
    assert len(pictures) == 6
    assert len(host.asked) == 1
    assert host.asked[0]["checkpoint"] == "model_best.pt"


def test_the_manifest_links_to_pictures_that_never_change(site, host) -> None:
    manifest = site.http.get(SHEET, headers={"Accept": "application/json"}).json()
    assert (manifest["run"], manifest["id"], manifest["step"]) == ("tiny", "0", 3)
    assert [(layer["layer"], layer["n_head"]) for layer in manifest["layers"]] == [(0, 4), (1, 2)]
    picture = site.http.get(manifest["links"]["layers"][1])
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    assert "immutable" in picture.headers["cache-control"]
    assert site.http.get(manifest["links"]["sheet"]).content == site.http.get(SHEET).content


def test_the_name_on_disk_works_as_an_address(site, host) -> None:
    layer = site.http.get(f"{SHEET}/layer01.png")
    assert layer.content == site.http.get(SHEET, params={"layer": 1}).content
    assert site.http.get(f"{SHEET}/layer01.svg").headers["content-type"] == "image/svg+xml"
    assert site.http.get(f"{SHEET}/layer09.png").status_code == 422


def test_a_client_that_has_it_is_not_sent_it_again_until_the_checkpoint_changes(site, host) -> None:
    run = site.http.get(SHEET)
    etag = run.headers["etag"]
    assert run.headers["vary"] == "Accept"
    assert "no-cache" in run.headers["cache-control"]
    again = site.http.get(SHEET, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert site.http.get(SHEET, headers={"If-None-Match": etag, "Accept": "application/json"}).status_code == 200

    from model_core.storage.run import Run

    site.publish(Run(site.layout.run("tiny")), b"better weights")
    changed = site.http.get(SHEET, headers={"If-None-Match": etag})
    assert (changed.status_code, len(host.asked)) == (200, 2)


def test_what_was_captured_outlives_its_checkpoint_and_its_process(site, host) -> None:
    from model_core.storage.run import Run

    link = site.http.get(SHEET, headers={"Accept": "application/json"}).json()["links"]["sheet"]
    site.publish(Run(site.layout.run("tiny")), b"better weights")
    site.registry.deregister("inference", "one")
    host.stop()
    assert site.http.get(link).status_code == 200
    assert site.http.get(SHEET).json()["code"] == "inference_unavailable"
    gone = site.http.get(SHEET, params={"checkpoint": f"sha256={'0' * 64}"})
    assert (gone.status_code, gone.json()["code"]) == (404, "checkpoint_not_found")


def test_formats_follow_accept_and_format(site, host) -> None:
    assert site.http.get(SHEET, params={"format": "svg"}).headers["content-type"] == "image/svg+xml"
    pdf = site.http.get(SHEET, headers={"Accept": "application/pdf"})
    assert pdf.content.startswith(b"%PDF")
    html = site.http.get(SHEET, headers={"Accept": "text/html"})
    assert (html.status_code, html.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("/attention/nowhere/0", {}, 404, "run_not_found"),
        ("/attention/tiny/99", {}, 404, "example_not_found"),
        ("/attention/tiny/x..y", {}, 422, "invalid_parameter"),
        (SHEET, {"layer": "7"}, 422, "invalid_parameter"),
        (SHEET, {"head": "1"}, 422, "invalid_parameter"),
        (SHEET, {"layer": "0", "head": "4"}, 422, "invalid_parameter"),
        (SHEET, {"cmap": "virids"}, 422, "invalid_parameter"),
        (SHEET, {"format": "gif"}, 422, "invalid_parameter"),
        (SHEET, {"dpi": "9999"}, 422, "invalid_parameter"),
        (SHEET, {"colour": "red"}, 422, "invalid_parameter"),
        (SHEET, {"checkpoint": "step=5"}, 404, "checkpoint_not_found"),
    ],
)
def test_what_cannot_be_shown_is_named(site, host, path: str, params: dict[str, str], status: int, code: str) -> None:
    reply = site.http.get(path, params=params)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
