"""Animations over HTTP: of checkpoints, and of the frames that a training keeps."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.heads.frames import Frame, save_frame
from model_core.attention.record import quantize
from model_core.storage.run import Run

HERE = "/attention/tiny/0/animation"
SMALL = {"dpi": "40"}


@pytest.fixture
def run(site) -> Run:
    site.add_host()
    return site.make_run("tiny")


def save(run: Run, file: str, step: int, size: int = 10) -> None:
    data = f"{file} {step}".encode().ljust(size)
    run.publish(file, lambda out: out.write(data), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)


def steps_of(reply: Any) -> list[int]:
    assert reply.status_code == 200, reply.text
    image = Image.open(io.BytesIO(reply.content))
    steps = [int(step) for step in image.text["steps"].split(",")]
    assert image.n_frames == len(steps)
    return steps


def test_a_frame_for_each_step_from_its_smallest_file(site, run) -> None:
    save(run, "model_00001.pt", 1)
    save(run, "model_00002.pt", 2)
    save(run, "model_final.pt", 3, size=500)
    reply = site.http.get(f"{HERE}.png", params=SMALL)
    assert reply.headers["content-type"] == "image/apng"
    assert steps_of(reply) == [1, 2, 3]
    (host,) = site._hosts
    assert [asked["checkpoint"] for asked in host.asked] == ["model_00001.pt", "model_00002.pt", "model_best.pt"]
    again = site.http.get(f"{HERE}.png", params=SMALL, headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, len(host.asked)) == (304, 3)
    assert steps_of(site.http.get(f"{HERE}.png", params={**SMALL, "checkpoints": "best,step=1"})) == [1, 3]
    gif = site.http.get(f"{HERE}.gif", params={**SMALL, "layer": "0", "head": "1", "frame_ms": "100"})
    assert gif.headers["content-type"] == "image/gif"
    assert Image.open(io.BytesIO(gif.content)).n_frames == 3
    save(run, "model_00004.pt", 4)
    changed = site.http.get(f"{HERE}.png", params=SMALL, headers={"If-None-Match": reply.headers["etag"]})
    assert steps_of(changed) == [1, 2, 3, 4]


def test_the_probe_needs_no_checkpoint(site, run) -> None:
    def frame(step: int, heads: tuple[int, ...] = (4, 2)) -> Frame:
        weights = [np.tril(np.random.default_rng(step).random((count, 3, 3))) for count in heads]
        layers = tuple(quantize(one / one.sum(axis=-1, keepdims=True)) for one in weights)
        return Frame(step, ("a", "b", "c"), layers)

    url = "/attention/tiny/probe/animation.png"
    few = site.http.get(url)
    assert (few.status_code, few.json()["code"]) == (409, "too_few_checkpoints")
    for step in (0, 2, 4):
        save_frame(run.path, frame(step), every=2)
    reply = site.http.get(url, params=SMALL)
    assert steps_of(reply) == [0, 2, 4]
    save_frame(run.path, frame(6), every=2)
    assert steps_of(site.http.get(url, headers={"If-None-Match": reply.headers["etag"]}, params=SMALL)) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("url", "params", "status", "code"),
    [
        (f"{HERE}.png", {}, 409, "too_few_checkpoints"),
        (f"{HERE}.png", {"checkpoints": "best,step=9"}, 404, "checkpoint_not_found"),
        (f"{HERE}.png", {"dpi": "151"}, 422, "invalid_parameter"),
        (f"{HERE}.webp", {}, 422, "invalid_parameter"),
        ("/attention/tiny/x/animation.png", {}, 422, "invalid_parameter"),
        ("/attention/nowhere/0/animation.gif", {}, 404, "run_not_found"),
    ],
)
def test_what_cannot_be_animated_is_named(site, run, url, params, status, code) -> None:
    reply = site.http.get(url, params=params)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_a_wrong_layer_too_many_captures_and_types(site, run) -> None:
    for step in range(4, 26):
        save(run, f"model_{step:05d}.pt", step)
    many = site.http.get(f"{HERE}.png")
    (error,) = many.json()["errors"]
    assert (many.status_code, many.json()["code"], error["pointer"]) == (422, "attention_too_large", "/checkpoints")
    assert len(error["nearest"][0].split(",")) == 20
    wrong = site.http.get(f"{HERE}.png", params={"layer": "7", "checkpoints": "best,step=4"})
    assert (wrong.status_code, wrong.json()["errors"][0]["nearest"]) == (422, [1])
    refused = site.http.get(f"{HERE}.gif", headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
