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
    sound = site.http.get(SHEET, headers={"Accept": "audio/ogg"})
    assert (sound.status_code, sound.json()["code"]) == (406, "not_acceptable")


def test_pictures_follow_the_testing_section_and_a_parameter_wins(site, host) -> None:
    sections = {"plain": {}, "styled": {"cmap": "magma", "dpi": 60, "label_max_tokens": 2, "format": "svg"}}
    for name, testing in sections.items():
        site.make_run(name, checkpoint=b"same", testing=testing)
    styled = site.http.get("/attention/styled/0", params={"layer": 0})
    assert styled.headers["content-type"] == "image/svg+xml"
    ask = {"layer": 0, "format": "png", "checkpoint": "best"}
    full = {"cmap": "magma", "dpi": 60, "labels": 2}
    pictures = [
        site.http.get(f"/attention/{run}/0", params={**ask, **own})
        for run, own in (("styled", {}), ("plain", full), ("plain", {}), ("styled", {"labels": 9}))
    ]
    sizes = [Image.open(io.BytesIO(picture.content)).size for picture in pictures]
    assert sizes[0] == sizes[1] != sizes[2]
    assert sizes[0] != sizes[3]
    same = site.http.get("/attention/styled/0", params={**ask, **full})
    assert (same.content, same.headers["etag"]) == (pictures[0].content, pictures[0].headers["etag"])


def test_a_range_marks_and_a_scale_of_its_own_are_other_pictures(site, host) -> None:
    asked = ({}, {"tokens": "1:4"}, {"highlight": "1,3-4"}, {"scale": "auto"})
    replies = [site.http.get(SHEET, params={"layer": 0, "dpi": 60, **own}) for own in asked]
    assert len({reply.content for reply in replies}) == len({reply.headers["etag"] for reply in replies}) == 4
    facts = [Image.open(io.BytesIO(reply.content)).text for reply in replies]
    assert [one["tokens"] for one in facts] == ["0:5", "1:4", "0:5", "0:5"]
    assert {one["scale"] for one in facts[:3]} == {"0 to 1"} != {facts[3]["scale"]}
    assert (facts[0]["run"], facts[0]["id"], facts[0]["step"]) == ("tiny", "0", "3")


def test_heads_in_the_order_of_a_statistic_are_other_pictures(site, host) -> None:
    asked = ({}, {"sort": "sink"}, {"sort": "sink", "order": "asc"}, {"sort": "sink", "top": "2"}, {"sort": "local"})
    for layer in ({}, {"layer": "0"}):
        replies = [site.http.get(SHEET, params={"dpi": "40", **layer, **own}) for own in asked]
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.content for reply in replies}) == len({reply.headers["etag"] for reply in replies}) == 5


@pytest.mark.parametrize(
    ("params", "pointer", "nearest"),
    [
        ({"layer": "9"}, "/layer", [1]),
        ({"layer": "1", "head": "3"}, "/head", [1]),
        ({"cmap": "virids"}, "/cmap", ["viridis"]),
        ({"scale": "autom"}, "/scale", ["auto"]),
        ({"tokens": "3:2"}, "/tokens", ["3:5"]),
        ({"tokens": "0:99"}, "/tokens", ["0:5"]),
        ({"highlight": "x"}, "/highlight", ["0-4"]),
        ({"highlight": "1-5"}, "/highlight", ["0-4"]),
        ({"sort": "previos"}, "/sort", ["previous"]),
        ({"top": "3"}, "/top", []),
    ],
    ids=lambda value: str(value),
)
def test_a_refusal_has_pointer_value_and_nearest(site, host, params, pointer, nearest) -> None:
    reply = site.http.get(SHEET, params=params)
    (error,) = reply.json()["errors"]
    assert (reply.status_code, error["pointer"]) == (422, pointer)
    assert str(error["value"]) == params[pointer[1:]]
    assert error["nearest"] == nearest


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
