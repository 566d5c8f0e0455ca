"""End-to-end test of all that attention offers, on imported models of GPT-2's depth, heads and vocabulary."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel

from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.hf.export import export_run
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import gpt2_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHAPES = {"uniform": [12] * 12, "unequal": [12, 12, 12, 8, 8, 6, 6, 4, 4, 3, 3, 2]}
WIDTH, POSITIONS, IDS = 48, 64, 50257
TEXT = "The cat sat on a mat. The dog saw the red bird on a hill, and ran to the blue tree."
each_model = pytest.mark.parametrize("run", SHAPES)


def save_uniform(folder: Path) -> None:
    shape = GPT2Config(n_layer=12, n_head=12, n_embd=WIDTH, n_positions=POSITIONS, vocab_size=IDS)
    GPT2LMHeadModel(shape).save_pretrained(folder)


def save_unequal(folder: Path) -> None:
    model = {"n_layer": 12, "n_embd": WIDTH, "n_head_list": SHAPES["unequal"], "vocab_size": IDS}
    tree = {
        "experiment_name": "made",
        "model": {**model, "block_size": POSITIONS},
        "training": {"batch_size": 1, "sequence_length": POSITIONS, "total_batch_size": POSITIONS},
        "data": {"dataset": "made", "tokenizer": "gpt2"},
    }
    config = parse_config(tree).config
    run = Run.create(Layout.under(folder.parent / "root").run("made"), config)
    state = parameters_state(GPT(config.model), config, gpt2_tokenizer(), step=0)
    run.publish("model_best.pt", writer(state), attempt=1, step=0, full=False, loss=None, val_loss=None)
    export_run(run, folder)


@pytest.fixture(scope="module")
def imported(service, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of the service, which has both models and a dataset for each."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    save_uniform(place / "uniform")
    save_unequal(place / "unequal")
    jobs = []
    for run in SHAPES:
        files = [("files", (path.name, path.read_bytes())) for path in (place / run).iterdir()]
        jobs.append(service.client.post("/runs", data={"name": run}, files=files))
        jobs.append(service.client.post("/datasets", json={"name": run, "source": "file:uploads/text.txt"}))
    assert [reply.status_code for reply in jobs] == [202] * 4
    for reply in jobs:
        service.finished(reply.json()["id"])
    return service.client


@pytest.fixture(scope="module")
def text(imported) -> str:
    """Id of a text that was captured under both models."""
    replies = [imported.post("/attention", json={"run": run, "text": TEXT}) for run in SHAPES]
    assert [reply.status_code for reply in replies] == [201, 201]
    [name] = {reply.json()["id"] for reply in replies}
    return name


@each_model
def test_the_weights_are_the_same_in_every_format(imported, text: str, run: str) -> None:
    address = f"/attention/{run}/{text}/weights"
    exact = np.load(io.BytesIO(imported.get(address, params={"format": "npz"}).content), allow_pickle=False)
    layers = [exact[f"layer{layer:02d}"] for layer in range(12)]  # (H, T, T) each
    assert [len(layer) for layer in layers] == SHAPES[run]
    rows, columns = np.tril_indices(layers[0].shape[-1])
    triangles = np.concatenate([layer[:, rows, columns].ravel() for layer in layers])
    levels = imported.get(address, params={"format": "u8"}).content
    assert np.abs((np.frombuffer(levels, np.uint8) / 255) ** 2 - triangles).max() <= 0.004
    shown = imported.get(address).json()
    assert b"".join(base64.b64decode(layer["weights"]) for layer in shown["layers"]) == levels
    sparse = imported.get(address, params={"format": "sparse", "layer": 11, "head": 1}).json()["layers"][0]["heads"][0]
    kept = np.add.reduceat(np.append(sparse["weights"], 0), sparse["offsets"][:-1])
    assert np.abs(kept + sparse["rest"] - 10_000).max() <= 10


@each_model
def test_statistics_name_every_head(imported, text: str, run: str) -> None:
    found = imported.get(f"/attention/{run}/{text}/statistics", params={"sort": "entropy"}).json()
    assert len(found["heads"]) == sum(SHAPES[run])
    entropies = [head["entropy"] for head in found["heads"]]
    assert entropies == sorted(entropies, reverse=True)


@each_model
@pytest.mark.parametrize("part", ["", "?tokens=4:12&scale=auto&highlight=5", "?sort=sink&top=9", "/rollout?format=png"])
def test_pictures_are_drawn(imported, text: str, run: str, part: str) -> None:
    reply = imported.get(f"/attention/{run}/{text}{part}", headers={"Accept": "image/png"})
    assert reply.status_code == 200, reply.text
    Image.open(io.BytesIO(reply.content)).verify()


@each_model
def test_one_checkpoint_makes_no_animation(imported, text: str, run: str) -> None:
    refused = [imported.get(f"/attention/{run}/{name}/animation.png") for name in (text, "probe")]
    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(409, "too_few_checkpoints")] * 2


@each_model
def test_heads_are_probed_on_demand(imported, run: str) -> None:
    assert imported.get(f"/runs/{run}/heads").json()["steps"] == []
    found = imported.get(f"/runs/{run}/heads", params={"checkpoint": "best"}).json()
    assert (found["steps"], [layer["n_head"] for layer in found["layers"]]) == ([0], SHAPES[run])
    assert found["types"] == [{}]  # untrained heads have no type


@each_model
def test_heads_are_ablated(service, imported, run: str) -> None:
    options = {"tokens": 64, "draws": 2}
    quote = imported.post(f"/runs/{run}/ablations?validate_only=true", json=options).json()
    passes = sum((1 - layer / 12) * (count + 1 + 2) for layer, count in enumerate(SHAPES[run]))
    assert (quote["passes"], quote["tokens"], quote["seconds"]) == (pytest.approx(passes), 64, None)
    service.finished(imported.post(f"/runs/{run}/ablations", json=options).json()["id"])
    result = imported.post(f"/runs/{run}/ablations", json=options).json()
    assert (result["object"], len(result["heads"]), len(result["layers"])) == ("ablation", sum(SHAPES[run]), 12)


@each_model
def test_heads_are_measured_over_many_examples(service, imported, run: str) -> None:
    options = {"examples": 8, "max_tokens": 32}
    service.finished(imported.post(f"/runs/{run}/distributions", json=options).json()["id"])
    made = imported.post(f"/runs/{run}/distributions", json=options)
    result = imported.get(made.headers["Location"]).json()
    assert (made.status_code, result["object"], len(result["heads"])) == (200, "distribution", sum(SHAPES[run]))


def test_both_are_compared(imported, text: str) -> None:
    found = imported.get("/compare", params={"runs": "uniform,unequal", "example": text}).json()
    [heads] = found["heads"]
    assert (len(heads["pairs"]), len(heads["unmatched"])) == (sum(SHAPES["unequal"]), 2)
    assert {pair["similar"] for pair in heads["pairs"]} <= {None, False}
    assert found["text"]["tokens"]
    twice = imported.get("/compare", params={"runs": "uniform,uniform"})
    assert (twice.status_code, twice.json()["errors"][0]["pointer"]) == (422, "/runs")
