"""Two to eight runs beside each other: differences, curves, heads, pictures, and what cannot be compared."""

import io
import math
import statistics
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_core.attention.record import AttentionRecord, text_directory
from model_core.attention.texts import save_text
from model_core.config_loader import parse_config
from model_core.schemas import text_id
from model_core.storage.events import EventWriter
from model_core.storage.run import Run
from tests.service.conftest import TREE

TOKENS_PER_STEP = 64
OTHER_TOKENIZER = {"kind": "bpe", "n_vocab": 512, "sha256": "1" * 64, "file": "tokenizer.json", "asked": "bpe:512"}


def make_run(site: Any, name: str, *, losses: dict[int, float] | None = None, **sections: Any) -> Run:
    """A run with a validation at some steps, of which each took a second."""
    tree = {**TREE, "experiment_name": name, **sections}
    run = Run.create(site.layout.run(name), parse_config(tree).config)
    run.begin_attempt(1, None)
    site.publish(run, name.encode())
    writer = EventWriter(run.events, 1)
    for step, loss in (losses or {}).items():
        writer.append("step", step=step, loss=loss, lr=1e-3, grad_norm=1.0, tokens_per_s=float(TOKENS_PER_STEP))
        writer.append("validation", step=step, val_loss=loss + 0.5, bits_per_byte=loss / 2)
    writer.close()
    return run


@pytest.fixture
def host(site) -> Any:
    make_run(site, "a", losses={1: 4.0, 2: 3.0, 3: 2.0})
    make_run(site, "b", losses={1: 4.5, 2: 3.25}, device={"seed": 7})
    return site.add_host()


def ask(site: Any, runs: str = "a,b", **params: Any) -> dict[str, Any]:
    reply = site.http.get("/compare", params={"runs": runs, **params})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def test_models_and_differences_are_those_of_the_resolved_configurations(site, host) -> None:
    make_run(site, "c", model={**TREE["model"], "n_head_list": [2, 4]})
    body = ask(site, "a,b,c", view="curves")
    assert (body["object"], body["runs"], body["checkpoints"]) == ("comparison", ["a", "b", "c"], ["model_best.pt"] * 3)
    assert body["differences"] == [
        {"key": "model.n_head_list", "values": [[4, 2], [4, 2], [2, 4]]},
        {"key": "device.seed", "values": [1337, 7, 1337]},
    ]
    assert body["equal"] > 50
    assert [model["tokens_seen"] for model in body["models"]] == [3 * TOKENS_PER_STEP] * 3
    assert len({model["sha256"] for model in body["models"]}) == 3
    assert body["models"][0]["parameters"] == site.http.get("/runs/a/report").json()["budget"]["parameters"]


def test_curves_are_each_runs_own_points_and_end_at_a_common_place(site, host) -> None:
    curves = ask(site, view="curves")["curves"]
    assert curves["x"] == "step"
    assert curves["series"]["val_loss"] == [{"x": [1, 2, 3], "y": [4.5, 3.5, 2.5]}, {"x": [1, 2], "y": [5.0, 3.75]}]
    assert curves["common"] == {
        "x": 2,
        "at": [2, 2],
        "values": {"val_loss": [3.5, 3.75], "bits_per_byte": [1.5, 1.625]},
        "deltas": {"val_loss": [0, 0.25], "bits_per_byte": [0, 0.125]},
    }


@pytest.mark.parametrize(("axis", "places"), [("tokens", [64, 128, 192]), ("seconds", [1, 2, 3])])
def test_x_may_be_tokens_or_seconds(site, host, axis: str, places: list[int]) -> None:
    curves = ask(site, view="curves", x=axis)["curves"]
    assert (curves["x"], curves["series"]["loss"][0]["x"], curves["common"]["x"]) == (axis, places, places[1])


def test_a_validation_that_was_not_at_the_common_place_is_the_last_one_before_it(site, host) -> None:
    make_run(site, "sparse", losses={1: 5.0, 9: 1.0})
    common = ask(site, "a,sparse", view="curves")["curves"]["common"]
    assert (common["x"], common["at"], common["values"]["val_loss"]) == (3, [3, 1], [2.5, 5.5])


def test_losses_that_are_no_numbers_have_no_difference(site, host) -> None:
    make_run(site, "lost", losses={1: math.nan, 2: math.nan, 3: math.nan})
    body = ask(site, "a,lost", view="curves")
    assert body["curves"]["common"]["values"]["val_loss"] == [2.5, "nan"]
    assert body["curves"]["common"]["deltas"]["val_loss"] == [0, None]


def test_runs_without_validations_have_no_common_place(site, host) -> None:
    make_run(site, "untold")
    curves = ask(site, "a,untold", view="curves")["curves"]
    assert (curves["series"]["loss"][1], curves["common"]) == ({"x": [], "y": []}, None)


def test_runs_that_differ_only_in_their_seed_are_one_group(site, host) -> None:
    make_run(site, "c", losses={2: 3.0}, model={**TREE["model"], "n_head_list": [2, 4]})
    first, second = ask(site, "a,c,b", view="curves")["groups"]
    assert (first["runs"], second["runs"]) == (["a", "b"], ["c"])
    assert first["val_loss"] == {"mean": 3.625, "sd": pytest.approx(statistics.stdev([3.5, 3.75])), "n": 2}
    assert second["val_loss"] == {"mean": 3.5, "sd": None, "n": 1}


def test_a_curve_is_thinned_and_keeps_its_ends(site, host) -> None:
    make_run(site, "long", losses={step: 1 / step for step in range(1, 201)})
    first, _ = ask(site, "long,a", view="curves", max_points=20)["curves"]["series"]["loss"]
    assert (len(first["x"]), first["x"][0], first["x"][-1]) == (20, 1, 200)


def test_heads_are_matched_on_the_windows_of_the_first_run_once(site, host) -> None:
    body = ask(site)
    [match] = body["heads"]
    assert (match["runs"], match["reason"], len(match["pairs"])) == (["a", "b"], None, 6)
    assert sorted(pair["b"] for pair in match["pairs"]) == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    assert match["unmatched"] == {"a": [], "b": []}
    assert {pair["similar"] for pair in match["pairs"]} == {False}
    assert match["mean"] == pytest.approx(np.mean([pair["overlap"] for pair in match["pairs"]]), abs=1e-3)
    assert [asked["windows_of"] for asked in host.asked] == ["a", "a"]
    assert ask(site)["heads"] == body["heads"]
    assert len(host.asked) == 2
    measured = body["statistics"]
    assert (measured["probe"]["run"], measured["probe"]["tokens"], measured["even"]["entropy_relative"]) == ("a", 64, 1)
    assert [(layer["layer"], layer["n_head"]) for layer in measured["layers"]] == [(0, [4, 4]), (1, [2, 2])]
    assert all(0 < value < 1 for layer in measured["layers"] for value in layer["metrics"]["sink"])


def test_two_checkpoints_of_one_run_are_compared_head_by_head(site, host) -> None:
    run = Run(site.layout.run("a"))
    run.publish("model_final.pt", lambda file: file.write(b"x"), attempt=1, step=9, full=False, loss=1.0, val_loss=None)
    [match] = ask(site, "a,a", checkpoints="best,final", view="heads")["heads"]
    assert match["checkpoints"] == ["model_best.pt", "model_final.pt"]
    assert [pair["a"] == pair["b"] and pair["similar"] for pair in match["pairs"]] == [True] * 6


def test_runs_of_other_tokenizers_have_bits_per_byte_and_no_pairs(site, host) -> None:
    site.add_dataset("others", tokenizer=OTHER_TOKENIZER)
    make_run(site, "c", losses={1: 9.0}, data={**TREE["data"], "dataset": "others"})
    body = ask(site, "a,c,b")
    assert list(body["curves"]["series"]) == ["bits_per_byte"]
    assert [(match["reason"], match["pairs"] is None) for match in body["heads"]] == [
        ("tokenizers_differ", True), (None, False),
    ]  # fmt: skip
    assert body["groups"][0]["val_loss"] is None
    assert body["statistics"]["layers"][0]["metrics"]["sink"][1] is None


def test_what_prevents_a_part_is_its_reason_and_the_reply_to_a_view(site, host) -> None:
    host.stop()
    site.registry.deregister("inference", "one")
    body = ask(site)
    assert (body["heads"][0]["reason"], body["statistics"]["reason"]) == ("inference_unavailable",) * 2
    assert body["curves"]["common"]["x"] == 2
    reply = site.http.get("/compare", params={"runs": "a,b", "view": "heads"})
    assert (reply.status_code, reply.json()["code"]) == (503, "inference_unavailable")


def test_one_text_is_captured_under_each_checkpoint_and_has_one_scale(site, host) -> None:
    text = ask(site, view="attention", example=3)["text"]
    assert (text["example"], text["tokens"], len(text["pieces"]), text["reason"]) == ("3", 5, 5, None)
    assert [(asked["run"], asked["id"]) for asked in host.asked] == [("a", "3"), ("b", "3")]
    levels = [
        AttentionRecord.find(site.layout, run, "3", Run(site.layout.run(run)).resolve("best").sha256).layer(layer)
        for run in ("a", "b")
        for layer in (0, 1)
    ]
    wanted = max(float(one[:, 1:, 1:].max() / 255) ** 2 for one in levels)
    assert text["scale"] == [0, pytest.approx(wanted, abs=1e-4)]
    assert [site.http.get(links["weights"]).status_code for links in text["links"]] == [200, 200]


def test_a_text_that_no_run_knows_is_named(site, host) -> None:
    reply = site.http.get("/compare", params={"runs": "a,b", "view": "attention", "example": "t_0123456789abcdef"})
    assert (reply.status_code, reply.json()["code"]) == (404, "example_not_found")
    assert ask(site, example="t_0123456789abcdef")["text"]["reason"] == "example_not_found"


def test_a_text_that_one_run_knows_is_captured_for_the_others(site, host) -> None:
    directory = text_directory(site.layout, "b", text_id("Once"))
    directory.mkdir(parents=True)
    save_text(directory, "Once")
    site.http.get("/compare", params={"runs": "a,b", "view": "attention", "example": text_id("Once")})
    assert (host.asked[0]["run"], host.asked[0]["text"]) == ("a", "Once")


@pytest.mark.parametrize("view", ["curves", "heads", "attention"])
def test_each_view_is_a_picture_that_says_what_it_shows(site, host, view: str) -> None:
    params = {"runs": "a,b", "view": view, "format": "png"}
    reply = site.http.get("/compare", params=params)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(reply.content))
    assert image.text["runs"] == "a,b"  # type: ignore[attr-defined]
    assert len(image.convert("L").getcolors()) > 20
    assert reply.content == site.http.get("/compare", params=params).content


def test_links_lead_to_the_pictures(site, host) -> None:
    links = ask(site)["links"]
    assert site.http.get(links["self"]).json()["runs"] == ["a", "b"]
    assert all(
        site.http.get(links[view]).headers["content-type"] == "image/png" for view in ("curves", "heads", "attention")
    )


@pytest.mark.parametrize(
    ("params", "status", "code", "pointer", "nearest"),
    [
        ({"runs": "a"}, 422, "invalid_parameter", "/runs", []),
        ({"runs": ",".join("abcdefghi")}, 422, "invalid_parameter", "/runs", []),
        ({}, 422, "invalid_parameter", "/runs", []),
        ({"runs": "a,a"}, 422, "invalid_parameter", "/runs", []),
        ({"runs": "a,b", "checkpoints": "best"}, 422, "invalid_parameter", "/checkpoints", []),
        ({"runs": "a,b", "checkpoints": "best,best,best"}, 422, "invalid_parameter", "/checkpoints", []),
        ({"runs": "a,b", "view": "head"}, 422, "invalid_parameter", "/view", ["heads"]),
        ({"runs": "a,b", "format": "pgn"}, 422, "invalid_parameter", "/format", ["png"]),
        ({"runs": "a,b", "x": "token"}, 422, "invalid_parameter", "/x", ["tokens", "step"]),
        ({"runs": "a,nowhere"}, 404, "run_not_found", None, None),
        ({"runs": "a,b", "checkpoints": "best,step=99"}, 404, "checkpoint_not_found", None, None),
        ({"runs": "a,no name"}, 422, "invalid_parameter", "/runs/1", ["no-name"]),
    ],
    ids=[
        "one", "nine", "none", "twice", "fewer checkpoints", "more checkpoints", "view", "format", "axis", "run",
        "checkpoint", "name",
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_named(
    site, host, params: dict[str, str], status: int, code: str, pointer: str | None, nearest: list[str] | None
) -> None:
    reply = site.http.get("/compare", params=params)
    body = reply.json()
    assert (reply.status_code, body["code"]) == (status, code)
    [problem] = body["errors"] or [{}]
    assert (problem.get("pointer"), problem.get("nearest")) == (pointer, nearest)
