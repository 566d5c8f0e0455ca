"""Parts of a record as pictures: what their panels hold, and where they are marked."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from model_core.attention.pictures.figure import ACCENT
from model_core.attention.pictures.layout import PictureStyle, all_layers_page, layer_page
from model_core.attention.pictures.plot import layer_picture
from model_core.attention.pictures.record_pictures import PictureContent, record_picture
from model_core.attention.record import NORMS, AttentionRecord
from model_core.errors import InvalidParameters
from model_core.storage.files import Layout
from tests.service.fake_host import HEADS, capture, made_up_weights

STYLE = PictureStyle(dpi=40)
TOKENS = 5
WEIGHTINGS = ("attention", "norm")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> AttentionRecord:
    return capture(Layout.under(tmp_path_factory.mktemp("data")), "tiny", "0", "a" * 64)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panels(png: bytes, count: int) -> list[np.ndarray]:
    """The panels of a layer's picture, whose notes fill one line more or less."""
    page = layer_page(["a"] * count, title="", notes=["a"], dpi=STYLE.dpi, labelled=True)
    picture = pixels(png)
    shift = picture.shape[0] - page.height
    return [picture[box.y + shift : box.y + shift + box.height, box.x : box.x + box.width] for box in page.panels]


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("tokens", [None, "2:5"])
def test_heads_are_drawn_in_the_order_of_a_statistic(record, ascending, tokens) -> None:
    plain = panels(record_picture(record, PictureContent(layer=0, tokens=tokens), STYLE), HEADS[0])
    asked = PictureContent(layer=0, tokens=tokens, sort="previous", is_ascending=ascending, top=3)
    drawn = panels(record_picture(record, asked, STYLE), 3)
    first = 0 if tokens is None else 2
    rows = np.square(record.layer(0).astype(float))
    rows /= rows.sum(axis=-1, keepdims=True)
    values = np.diagonal(rows, -1, axis1=1, axis2=2)[:, max(0, first - 1) :].mean(axis=1)
    order = sorted(range(HEADS[0]), key=lambda head: values[head], reverse=not ascending)
    for panel, head in zip(drawn, order[:3], strict=True):
        np.testing.assert_array_equal(panel, plain[head])


def test_a_range_is_the_lower_right_corner_of_the_whole(record) -> None:
    levels = record.layer(1)
    part = panels(record_picture(record, PictureContent(layer=1, tokens="2:5"), STYLE), HEADS[1])
    whole = layer_picture(levels[:, 2:, 2:], record.tokens[2:], layer=1, style=STYLE)
    for panel, expected in zip(part, panels(whole, HEADS[1]), strict=True):
        np.testing.assert_array_equal(panel, expected)


def test_marks_outline_rows_and_columns_and_neighbours_are_one_band(record) -> None:
    accent = np.array([int(ACCENT[at : at + 2], 16) for at in (1, 3, 5)])
    panel = panels(record_picture(record, PictureContent(layer=0, highlight="1-2"), STYLE), HEADS[0])[0]
    is_marked = (panel == accent).all(axis=-1)
    side = len(panel)
    rows, columns = np.nonzero(is_marked.all(axis=1))[0], np.nonzero(is_marked.all(axis=0))[0]
    assert list(rows) == list(columns) == [side // TOKENS, 3 * side // TOKENS - 1]


def test_an_own_scale_ends_at_the_largest_weight_shown(record) -> None:
    reply = record_picture(record, PictureContent(layer=0), PictureStyle(dpi=40, scale="auto"))
    largest = (record.layer(0)[:, 1:, 1:].max() / 255) ** 2
    assert Image.open(io.BytesIO(reply)).text["scale"] == f"0 to {largest:.4g}"
    brightest = max(panel.reshape(-1, 3).tolist().count([253, 231, 37]) for panel in panels(reply, HEADS[0]))
    assert brightest > 0


def test_weighting_draws_what_each_key_contributes(record) -> None:
    norms = record.norms(1)
    assert norms is not None
    expected = made_up_weights(TOKENS)[1] * norms[:, None]
    expected /= expected.sum(axis=-1, keepdims=True)
    drawn = panels(record_picture(record, PictureContent(layer=1, weighting="norm"), STYLE), HEADS[1])
    whole = panels(layer_picture(expected, record.tokens, layer=1, style=STYLE), HEADS[1])
    for panel, own in zip(drawn, whole, strict=True):
        assert np.abs(panel - own).max() <= 6  # levels of levels: a color or two
    assert len({record_picture(record, PictureContent(layer=1, weighting=kind), STYLE) for kind in WEIGHTINGS}) == 2


def test_a_record_without_norms_says_so(record, tmp_path) -> None:
    older = shutil.copytree(record.path, tmp_path / "older")
    shutil.rmtree(older / NORMS)
    opened = AttentionRecord.open(older)
    assert opened is not None
    with pytest.raises(InvalidParameters) as refusal:
        record_picture(opened, PictureContent(layer=0, weighting="norm"), STYLE)
    (problem,) = refusal.value.problems
    assert (problem.pointer, problem.nearest) == ("/weighting", ("attention",))


def test_every_part_is_drawn_in_every_format(record) -> None:
    chosen = (
        PictureContent(tokens="1:4", highlight="2"),
        PictureContent(sort="sink", top=4, highlight="0,3-4"),
        PictureContent(layer=0, sort="entropy", tokens="1:4"),
        PictureContent(layer=0, head=1, highlight="4"),
    )
    for content in chosen:
        png, svg = (record_picture(record, content, PictureStyle(format=kind, dpi=40)) for kind in ("png", "svg"))
        assert Image.open(io.BytesIO(png)).text["sha256"] == "a" * 64
        assert b"a" * 64 in svg
    assert len({record_picture(record, content, STYLE) for content in chosen}) == len(chosen)


def test_a_ranked_page_holds_each_head_once(record) -> None:
    ranked = pixels(record_picture(record, PictureContent(sort="sink"), STYLE))
    sheet = all_layers_page(HEADS, title="", notes=[], dpi=STYLE.dpi)
    assert ranked.shape != (sheet.height, sheet.width, 3)
    with pytest.raises(InvalidParameters, match="/sort"):
        record_picture(record, PictureContent(sort="sinks"), STYLE)
    with pytest.raises(InvalidParameters, match="/top"):
        record_picture(record, PictureContent(top=2), STYLE)
