"""Animations, read back with Pillow."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from model_core.attention.pictures.animation import MAX_PIXELS, AnimationPlot, StepFrame, animate
from model_core.attention.pictures.layout import PictureStyle, layer_page
from model_core.attention.pictures.sheet import palette
from model_core.attention.record import quantize
from model_core.errors import AttentionTooLarge, InvalidParameters

HEADS, TOKENS = (3, 1), 6
STYLE = PictureStyle(dpi=40)


def levels(heads: int, seed: int) -> np.ndarray:
    weights = np.tril(np.random.default_rng(seed).random((heads, TOKENS, TOKENS)))
    return quantize(weights / weights.sum(axis=-1, keepdims=True))


def plot(steps: int = 3, **content: int) -> AnimationPlot:
    frames = [
        StepFrame(100 * step, HEADS, [levels(heads, step) for heads in HEADS].__getitem__) for step in range(steps)
    ]
    return AnimationPlot(frames, [str(token) for token in range(TOKENS)], metadata={"run": "tiny"}, **content)


def frames_of(data: bytes) -> list[Image.Image]:
    image = Image.open(io.BytesIO(data))
    found = []
    for number in range(image.n_frames):
        image.seek(number)
        found.append(image.copy())
    return found


@pytest.mark.parametrize("container", ["png", "gif"])
@pytest.mark.parametrize("content", [{}, {"layer": 0}, {"layer": 0, "head": 2}], ids=str)
def test_a_frame_a_step_in_the_colors_of_our_palette(container, content) -> None:
    frames = frames_of(animate(plot(**content), STYLE, container, frame_ms=250))
    assert len(frames) == 3
    assert len({frame.size for frame in frames}) == 1
    assert {frame.info["duration"] for frame in frames} == {250}
    ours = {tuple(color) for color in np.frombuffer(palette("viridis"), np.uint8).reshape(-1, 3).tolist()}
    drawn = [np.asarray(frame.convert("RGB")) for frame in frames]
    assert all({tuple(color) for color in frame.reshape(-1, 3).tolist()} <= ours for frame in drawn)
    assert all((one != two).any() for one, two in itertools.pairwise(drawn))


def test_both_containers_show_the_same_and_a_panel_holds_its_step() -> None:
    apng, gif = (frames_of(animate(plot(layer=1), STYLE, kind, frame_ms=100)) for kind in ("png", "gif"))
    for step, (one, two) in enumerate(zip(apng, gif, strict=True)):
        np.testing.assert_array_equal(np.asarray(one.convert("RGB")), np.asarray(two.convert("RGB")))
        (box,) = layer_page(["Head 0"], title="", notes=[], dpi=40, labelled=True).panels
        panel = np.asarray(one.convert("RGB"))[box.y + box.height - 3, box.x + 2]
        share = (levels(1, step)[0, -1, 0] / 255) ** 2
        color = np.frombuffer(palette("viridis"), np.uint8).reshape(-1, 3)[round(share * 223)]
        assert panel.tolist() == color.tolist()


def test_one_scale_holds_for_all_frames() -> None:
    image = Image.open(io.BytesIO(animate(plot(), PictureStyle(dpi=40, scale="auto"), "png", frame_ms=100)))
    largest = max(levels(heads, step)[:, 1:, 1:].max() for heads in HEADS for step in range(3))
    assert image.text["scale"] == f"0 to {(largest / 255) ** 2:.4g}"
    assert image.text["run"] == "tiny"


def test_too_many_pixels_are_refused_with_a_resolution_that_fits() -> None:
    many = plot(2)
    many = AnimationPlot(many.frames * 400, many.tokens, layer=0)
    with pytest.raises(AttentionTooLarge) as refusal:
        animate(many, PictureStyle(dpi=150), "png", frame_ms=100)
    (problem,) = refusal.value.problems
    page = layer_page(["a"] * 3, title="", notes=[], dpi=problem.nearest[0], labelled=True)
    assert problem.pointer == "/dpi"
    assert 0.8 * MAX_PIXELS < 800 * page.width * page.height < 1.05 * MAX_PIXELS


@pytest.mark.parametrize("content", [{"layer": 2}, {"layer": 1, "head": 1}, {"head": 0}], ids=str)
def test_heads_that_there_are_not_are_refused(content) -> None:
    with pytest.raises(InvalidParameters):
        animate(plot(**content), STYLE, "png", frame_ms=100)
