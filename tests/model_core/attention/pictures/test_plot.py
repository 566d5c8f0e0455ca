"""Pictures of attention, compared by bytes and with the figure that they show."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from model_core.attention.pictures.layout import PictureStyle, all_layers_page, layer_page
from model_core.attention.pictures.plot import (
    all_layers_image,
    head_picture,
    layer_figure,
    layer_picture,
    plot_layer_attention,
)
from model_core.attention.record import quantize
from model_core.errors import InvalidParameters

WORDS = [" One", " day", ",", " a$b", "\n", " 中文", "🙂", "\x00", " ", "", "é", "\u202e", "$x_1$", "\\", " %s", "<&>"]


def random_weights(heads, tokens, seed=0):
    logits = np.random.default_rng(seed).standard_normal((heads, tokens, tokens)) * 2
    logits[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def numbers(tokens):
    return [str(token) for token in range(tokens)]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def figure_pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return pixels(buffer.getvalue())


def heat_maps(figure):
    return [axes for axes in figure.axes if axes.get_xlabel() == "Key"]


def crop(picture, box):
    return picture[box.y : box.y + box.height, box.x : box.x + box.width]


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 12, 16, 100])
def test_a_layer_has_a_panel_a_head_in_four_columns_and_no_empty_axes(heads):
    page = layer_page(numbers(heads), title="Layer 0", notes=[], dpi=20, labelled=False)
    assert len(page.panels) == heads
    assert len({panel.x for panel in page.panels}) == min(4, heads)
    assert len({panel.y for panel in page.panels}) == -(-heads // 4)
    assert len({(panel.x, panel.y) for panel in page.panels}) == heads
    assert all(p.x >= 0 and p.x + p.width <= page.width and p.y + p.height <= page.height for p in page.panels)


def test_the_figure_has_its_axes_colours_and_titles():
    figure = layer_figure(random_weights(5, 6), numbers(6), layer=3)
    maps = heat_maps(figure)
    assert len(maps) == 5
    assert {axes.get_ylabel() for axes in maps} == {"Query"}
    assert {axes.images[0].get_clim() for axes in maps} == {(0.0, 1.0)}
    assert {axes.images[0].get_cmap().name for axes in maps} == {"viridis"}
    assert maps[0].images[0].get_array().mask[np.triu_indices(6, 1)].all()
    assert not maps[0].images[0].get_array().mask[np.tril_indices(6)].any()
    texts = {text.get_text() for text in figure.texts}
    assert {"Layer 3", "5 heads", *(f"Head {head}" for head in range(5))} <= texts


@pytest.mark.parametrize(("tokens", "written"), [(20, True), (21, False)])
def test_tokens_are_written_up_to_a_number_of_them(tokens, written):
    labels = [f"w{token}" for token in range(tokens)]
    axes = heat_maps(layer_figure(random_weights(1, tokens), labels, layer=0))[0]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert (shown == labels) is written
    assert ("w3" in shown) is written


@pytest.mark.parametrize(("heads", "tokens"), [(3, 7), (6, 30), (1, 60)])
def test_a_png_is_to_the_eye_what_matplotlib_draws(heads, tokens):
    weights, style = random_weights(heads, tokens), PictureStyle(dpi=60)
    drawn = pixels(layer_picture(weights, numbers(tokens), layer=1, style=style, notes=["a run"]))
    reference = figure_pixels(layer_figure(weights, numbers(tokens), layer=1, style=style, notes=["a run"]))
    assert drawn.shape == reference.shape
    difference = np.abs(drawn - reference).max(axis=-1)
    assert difference.mean() < 1.0
    assert (difference > 24).mean() < 0.001


def test_panels_hold_their_own_head_and_mask_the_future():
    weights = np.zeros((2, 8, 8))
    weights[0] = np.eye(8)
    weights[1, :, 0] = 1.0
    page = layer_page(numbers(2), title="", notes=["2 heads"], dpi=40, labelled=True)
    picture = pixels(layer_picture(weights, numbers(8), layer=0, style=PictureStyle(dpi=40)))
    first, second = (crop(picture, panel) for panel in page.panels)
    assert (first != second).any()
    side = page.panels[0].width
    bright, middle = first[side // 2 + 1, side // 2 + 1], second[side // 2 + 1, 2]
    assert bright.tolist() == middle.tolist() == [253, 231, 37]  # viridis at 1
    assert len(set(first[2, -2].tolist())) == 1  # the future is grey


def test_more_tokens_than_pixels_keep_their_thin_lines():
    weights = np.zeros((1, 300, 300))
    weights[0, :, 7] = 1.0
    page = layer_page(numbers(1), title="", notes=["1 head"], dpi=20, labelled=False)
    picture = pixels(layer_picture(weights, numbers(300), layer=0, style=PictureStyle(dpi=20)))
    lit = (crop(picture, page.panels[0])[20:] == [253, 231, 37]).all(axis=-1)
    assert lit.any(axis=1).all()


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_any_text_can_be_a_label_in_every_format(format):  # noqa: A002
    style = PictureStyle(format=format, dpi=30)
    weights = random_weights(2, len(WORDS))
    picture = layer_picture(weights, WORDS, layer=0, style=style, notes=["a $b$ \n 中"])
    assert picture.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[format])
    assert picture == layer_picture(weights, WORDS, layer=0, style=style, notes=["a $b$ \n 中"])


def test_attention_and_its_stored_form_give_the_same_picture():
    weights = random_weights(2, 9)
    stored = layer_picture(quantize(weights), numbers(9), layer=0)
    assert plot_layer_attention(weights, numbers(9), layer=0) == stored


def test_the_palette_picture_says_its_resolution_and_its_colours_can_change():
    weights = random_weights(1, 5)
    image = Image.open(io.BytesIO(layer_picture(weights, numbers(5), layer=0)))
    assert image.mode == "P"
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    style = PictureStyle(cmap="magma")
    assert (pixels(layer_picture(weights, numbers(5), layer=0, style=style)) != np.asarray(image.convert("RGB"))).any()


def test_one_head_is_drawn_alone_under_its_own_number():
    weights, style = random_weights(4, 12), PictureStyle(dpi=40)
    pictures = [head_picture(one, numbers(12), layer=2, head=n, style=style) for n, one in enumerate(weights)]
    assert len(set(pictures)) == 4


@pytest.mark.parametrize("heads", [[1], [12, 8, 6, 4], [100, 1, 17], [3] * 30])
def test_an_all_layers_image_holds_every_head_of_every_layer(heads):
    page = all_layers_page(heads, title="", notes=[], dpi=30)
    assert len(page.panels) == sum(heads)
    assert len({(panel.x, panel.y) for panel in page.panels}) == sum(heads)
    layers = (random_weights(count, 10, seed) for seed, count in enumerate(heads))
    picture = pixels(all_layers_image(layers, heads=heads, style=PictureStyle(dpi=30)))
    assert picture.shape[:2] == (page.height, page.width)
    assert all(len(np.unique(crop(picture, panel).reshape(-1, 3), axis=0)) > 3 for panel in page.panels)


def test_an_all_layers_image_is_a_vector_picture_too():
    layers = [random_weights(count, 10) for count in (3, 2)]
    sheet = all_layers_image(layers, heads=[3, 2], style=PictureStyle(format="svg"))
    assert sheet.count(b"<image") >= 5


@pytest.mark.parametrize(
    ("asked", "pointer", "near"),
    [
        ({"format": "jpng"}, "/format", "png"),
        ({"cmap": "virids"}, "/cmap", "viridis"),
        ({"scale": "autom"}, "/scale", "auto"),
        ({"dpi": 5}, "/dpi", 10),
        ({"dpi": 6000}, "/dpi", 600),
        ({"label_max_tokens": -1}, "/labels", 0),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_nearest_that_can(asked, pointer, near):
    with pytest.raises(InvalidParameters) as refusal:
        PictureStyle(**asked)
    assert [(wrong.pointer, wrong.value, wrong.nearest) for wrong in refusal.value.problems] == [
        (pointer, *asked.values(), (near,))
    ]


def test_a_picture_of_too_many_pixels_is_refused_with_a_resolution_that_fits():
    weights = random_weights(100, 2)
    with pytest.raises(InvalidParameters) as refusal:
        layer_picture(weights, numbers(2), layer=0, style=PictureStyle(dpi=600))
    (problem,) = refusal.value.problems
    assert (problem.pointer, problem.value) == ("/dpi", 600)
    assert layer_picture(weights, numbers(2), layer=0, style=PictureStyle(dpi=problem.nearest[0]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        layer_picture(np.zeros((2, 3, 4)), numbers(3), layer=0)
    with pytest.raises(ValueError, match=r"4.* 3"):
        layer_picture(np.zeros((2, 3, 3)), numbers(4), layer=0)


def test_threads_draw_what_one_thread_draws():
    jobs = [(random_weights(heads, tokens, heads), tokens) for heads in (1, 3) for tokens in (8, 13, 33)]
    styles = [PictureStyle(dpi=37), PictureStyle(dpi=37, format="svg")]

    def draw(job):
        weights, tokens = job
        return [layer_picture(weights, numbers(tokens), layer=0, style=style) for style in styles]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, jobs))
    assert together == [draw(job) for job in jobs]


def test_pyplot_and_torch_are_never_loaded():
    program = (
        "import sys, numpy as np\n"
        "from model_core.attention.pictures.plot import layer_picture, PictureStyle\n"
        "for f in ('png', 'svg'): layer_picture(np.eye(3)[None], 'abc', layer=0, style=PictureStyle(format=f))\n"
        "assert not {'matplotlib.pyplot', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
