"""What every head attends to in the windows of a dataset, and on the probe, as an inference process keeps it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from model_core.attention.heads.history import find_reading
from model_core.attention.heads.patterns import HeadPatterns, patterns_file, windows_key
from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST
from model_core.storage.dataset import MANIFEST, SPLITS, Dataset, dataset_of
from model_core.storage.files import Layout, write_json
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from worker.inference.app import create_app
from worker.inference.model_cache import ModelCache
from worker.jobs.settings import InferenceSettings

TREE: dict[str, Any] = {
    "model": {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": 64, "n_head_list": [4, 2]},
    "training": {"batch_size": 1, "sequence_length": 32, "total_batch_size": 32, "warmup_steps": 1, "max_steps": 4},
    "data": {"dataset": "words", "tokenizer": {"type": "bpe", "vocab_size": 280}},
}

TEXT = "The cat saw a red ball."


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.under(tmp_path)
    for seed, name in enumerate(("one", "two")):
        config = parse_config({"experiment_name": name, **TREE}).config
        torch.manual_seed(seed)
        state = parameters_state(GPT(config.model), config, train_bpe([TEXT], 280), 3)
        run = Run.create(layout.run(name), config)
        run.publish(BEST, writer(state), attempt=1, step=3, full=False, loss=1.0, val_loss=1.0)
    save_tokens(dataset_of(config, layout), np.arange(2000) % 280)
    return layout


@pytest.fixture
def models(layout: Layout) -> Iterator[ModelCache]:
    models = ModelCache(layout, device="cpu", settings=InferenceSettings(weights="fp32", memory_gb=0.1))
    yield models
    models.close()


def save_tokens(dataset: Dataset, ids: Any) -> None:
    dataset.directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        np.save(dataset.split(split), ids.astype(np.uint16))


def save_tokenizer(dataset: Dataset, text: str) -> None:
    """Record with which tokenizer the dataset was encoded."""
    write_json(dataset.directory / "tokenizer.json", train_bpe([text], 280).to_dict())
    splits = {split: {"file": dataset.split(split).name} for split in SPLITS}
    write_json(dataset.directory / MANIFEST, {"splits": splits, "tokenizer": {"file": "tokenizer.json"}})


def ask(models: ModelCache, run: str, path: str = "/patterns", **fields: Any) -> httpx.Response:
    sha256 = Run.open(models.layout.run(run)).resolve("best").sha256

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(models))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            windows = {"windows_of": "one", "tokens": 64} if path == "/patterns" else {}
            asked = {"run": run, "checkpoint": BEST, **windows, **fields}
            return await http.post(path, json={"request": asked, "sha256": sha256})

    return asyncio.run(post())


def test_patterns_of_two_runs_are_kept_for_the_same_windows(layout, models) -> None:
    assert [ask(models, run).status_code for run in ("one", "two")] == [200, 200]
    key = windows_key(dataset_of(Run.open(layout.run("one")).config(), layout), 64)
    files = [patterns_file(layout, run, Run(layout.run(run)).resolve("best").sha256, key) for run in ("one", "two")]
    one, two = (HeadPatterns.load(file) for file in files)
    assert one is not None
    assert two is not None
    assert (one.probe, one.heads, one.tokens) == (two.probe, two.heads, 64)
    assert not np.array_equal(one.levels, two.levels)


def test_windows_that_cannot_be_read_are_named(layout, models) -> None:
    refused = ask(models, "two", windows_of="nowhere")
    assert (refused.status_code, refused.json()["code"]) == (404, "run_not_found")
    save_tokens(dataset_of(Run.open(layout.run("one")).config(), layout), np.arange(63))
    refused = ask(models, "two")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_data")


def test_the_probe_of_a_checkpoint_is_read_once_and_stored(layout, models) -> None:
    run = Run.open(layout.run("one"))
    save_tokenizer(dataset_of(run.config(), layout), TEXT)
    first = ask(models, "one", "/probe")
    assert first.status_code == 200, first.text
    told, sha256 = first.json(), run.resolve("best").sha256
    file = layout.attention_of("one") / "probes" / f"{sha256[:8]}-{told['probe']['sha256'][:8]}.json"
    assert json.loads(file.read_text()) == told
    assert [len(layer) for layer in told["values"]["previous"]] == [4, 2]
    assert told["step"] == find_reading(layout, "one", sha256).step == 3

    write_json(file, {**told, "types": {"0.0": []}})  # it would not say so if it were read again
    assert ask(models, "one", "/probe").json()["types"] == {"0.0": []}
    file.write_text("damaged")
    assert ask(models, "one", "/probe").json() == told
    save_tokens(dataset_of(run.config(), layout), np.arange(2000) % 270)
    assert ask(models, "one", "/probe").json()["probe"] != told["probe"]
    assert len(list(file.parent.iterdir())) == 2


def test_a_dataset_that_has_no_probe_for_a_checkpoint_is_named(layout, models) -> None:
    dataset = dataset_of(Run.open(layout.run("one")).config(), layout)
    save_tokenizer(dataset, "another text")
    refused = ask(models, "one", "/probe")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_data")
    dataset.val.unlink()
    refused = ask(models, "one", "/probe")
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_not_ready")
