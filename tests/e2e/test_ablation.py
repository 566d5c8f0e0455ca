"""End-to-end test of an ablation: a job that is killed and paused half-way, and its result over HTTP."""

import csv
import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GPT2LMHeadModel

from model_core.attention.heads.ablation_record import AblationOptions, read_sample
from model_core.hf.custom.modeling_headcount import HeadcountForCausalLM
from model_core.storage.dataset import Dataset
from model_core.storage.events import read_events
from tests.polling import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = {"n_layer": 4, "n_embd": 64, "vocab_size": 384, "block_size": 128}
SHAPES = {"unequal": [8, 4, 2, 1], "uniform": [4, 4, 4, 4]}
OPTIONS = {"tokens": 2048, "draws": 4, "split": "train"}
each_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture(scope="module")
def trained(service, tiny) -> dict[str, Path]:
    """A run of each shape, and the folder of its export."""
    folders = {}
    for name, heads in SHAPES.items():
        tree = tiny(name, model={**MODEL, "n_head_list": heads}, execution={"test": False})
        training = service.submit(tree)
        waits = {"kind": "export", "depends_on": [training["id"]]}
        service.finished(service.submit({"experiment_name": name, "job": waits})["id"])
        [export] = service.client.get(f"/runs/{name}/exports").json()["data"]
        folders[name] = service.data / "exports" / name / export["name"]
    return folders


@pytest.fixture(scope="module")
def ablated(service, trained) -> dict[str, dict]:
    """The result of an ablation of each run."""
    results = {}
    for name in SHAPES:
        job = service.client.post(f"/runs/{name}/ablations", json=OPTIONS).json()
        service.finished(job["id"])
        results[name] = service.client.post(f"/runs/{name}/ablations", json=OPTIONS).json()
    return results


def losses_by_hook(folder: Path, heads: list[int], ids: np.ndarray) -> dict[tuple[int, int | str], float]:
    """Loss change in transformers by layer and head: a hook replaces what a head read by its mean."""
    kind = GPT2LMHeadModel if len(set(heads)) == 1 else HeadcountForCausalLM
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    idx, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])  # (N, T), (N, T)
    size = model.config.n_embd

    @torch.no_grad()
    def loss_without(layer: int = 0, channels: slice = slice(0)) -> float:
        def replace(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            y = inputs[0].clone()
            y[..., channels] = inputs[0].mean((0, 1))[channels]
            return (y,)

        handle = model.transformer.h[layer].attn.c_proj.register_forward_pre_hook(replace)
        logits = model(idx).logits.double().flatten(0, 1)  # (N T, V)
        handle.remove()
        return torch.nn.functional.cross_entropy(logits, targets.flatten()).item()

    clean = loss_without()
    channels: dict[tuple[int, int | str], slice] = {
        (layer, head): slice(head * size // count, (head + 1) * size // count)
        for layer, count in enumerate(heads)
        for head in range(count)
    } | {(layer, "all"): slice(0, size) for layer in range(len(heads))}
    return {(layer, head): loss_without(layer, place) - clean for (layer, head), place in channels.items()}


@each_shape
def test_every_change_is_that_of_a_hook_on_the_export(service, trained, ablated, shape: str) -> None:
    dataset = Dataset.named("text", service.data / "datasets" / "text")
    sample = read_sample(dataset, AblationOptions.model_validate(OPTIONS), block_size=128, vocab_size=384)
    expected = losses_by_hook(trained[shape], SHAPES[shape], sample.ids)
    found = {(head["layer"], head["head"]): head["change"] for head in ablated[shape]["heads"]}
    found |= {(layer["layer"], "all"): layer["change"] for layer in ablated[shape]["layers"]}
    assert ablated[shape]["sample"]["sha256"] == sample.sha256
    assert found.keys() == expected.keys()
    assert max(abs(found[place] - expected[place]) for place in expected) < 1e-5


@each_shape
def test_a_result_is_served_as_json_csv_and_a_picture(service, ablated, shape: str) -> None:
    address = ablated[shape]["links"]["self"]
    assert [item["name"] for item in service.client.get(f"/runs/{shape}/ablations").json()["data"]] == [
        ablated[shape]["name"]
    ]
    result = service.client.get(address).json()
    rows = list(csv.DictReader(io.StringIO(service.client.get(address, params={"format": "csv"}).text)))
    assert [float(row["change"]) for row in rows if row["head"] != "all"] == [
        pytest.approx(head["change"]) for head in result["heads"]
    ]
    assert sum(row["head"] == "all" for row in rows) == len(result["layers"]) == 4
    picture = service.client.get(address, headers={"Accept": "image/png"})
    Image.open(io.BytesIO(picture.content)).verify()


@pytest.mark.usefixtures("trained")
def test_a_killed_and_a_paused_job_repeat_no_finished_pass(service) -> None:
    options = {**OPTIONS, "tokens": 16_384, "draws": 16}  # some seconds of passes
    job = service.client.post("/runs/uniform/ablations", json=options).json()["id"]
    finished = service.data / "attention_outputs" / "uniform" / "ablations"

    def passes() -> int:
        return sum(len(path.read_text().split("\n")) - 1 for path in finished.glob(".*.partial.jsonl"))

    eventually(lambda: passes() >= 5)
    running = service.job(job)
    assert running["progress"]["unit"] == "passes"
    os.kill(running["worker"]["pid"], signal.SIGKILL)
    killed_at = passes()
    service.until(job, lambda found: found["attempt"] >= 2 and found["status"] == "running")
    eventually(lambda: passes() >= killed_at + 5)
    assert service.client.post(f"/jobs/{job}/pause").status_code in {200, 202}
    service.until(job, lambda found: found["status"] == "paused")
    paused_at = passes()
    assert paused_at > killed_at
    assert service.client.post(f"/jobs/{job}/resume").status_code in {200, 202}
    done = service.finished(job)
    assert done["progress"]["done"] == done["progress"]["of"]

    told = read_events(service.data / "jobs" / job / "events.jsonl", types={"progress"})
    last = [event for event in told if event["attempt"] == done["attempt"]]
    every = 1 + 4 * (4 + 1 + options["draws"])  # the clean pass; heads, the layer and the null of each layer
    assert len(last) == 1 + every - paused_at
    assert service.client.post("/runs/uniform/ablations", json=options).json()["object"] == "ablation"


def test_deleting_a_run_deletes_its_ablations(service, ablated) -> None:
    outputs = service.data / "attention_outputs" / "unequal"
    assert (outputs / "ablations" / f"{ablated['unequal']['name']}.json").is_file()
    assert service.client.delete("/runs/unequal").status_code == 204
    assert not outputs.exists()
    gone = service.client.get(ablated["unequal"]["links"]["self"])
    assert (gone.status_code, gone.json()["code"]) == (404, "run_not_found")
