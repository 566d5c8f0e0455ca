"""A model that int8 spoils is served in float16; the comparison is made once for each checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_core.checkpoint import LoadedModel, load_model, parameters_state, writer
from model_core.config_loader import parse_config
from model_core.generation.forward import quality_gate
from model_core.generation.forward.quality_gate import REFUSED, GateResult, QualityGate
from model_core.generation.forward.weight_formats import cpu_features
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer

Publish = Callable[..., tuple[Run, LoadedModel]]


def _spoil(model: GPT) -> None:
    """One channel before the head is huge and has no effect, but decides the scale of every row's integers."""
    with torch.no_grad():
        model.lm_head.weight.normal_(std=2)
        model.lm_head.weight[:, 0] = 0
        model.transformer["ln_f"].weight[0] = 1e4
        model.transformer["wpe"].weight[:, 0] = 5


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.under(tmp_path)


@pytest.fixture
def publish(layout: Layout, tokenizer: Tokenizer) -> Publish:
    def make(*, spoiled: bool = False) -> tuple[Run, LoadedModel]:
        tree = {
            "experiment_name": "judged",
            "model": {"n_layer": 2, "n_embd": 32, "vocab_size": 320, "block_size": 64, "n_head_list": [4, 2]},
            "training": {"batch_size": 1, "sequence_length": 32, "total_batch_size": 32, "warmup_steps": 0},
            "data": {"tokenizer": {"type": "bpe", "vocab_size": 280}, "source": "stories", "dataset": "tales"},
        }
        config = parse_config(tree).config
        torch.manual_seed(0)
        model = GPT(config.model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        if spoiled:
            _spoil(model)
        run = Run.create(layout.run("judged"), config)
        state = parameters_state(model, config, tokenizer, 1)
        run.publish(BEST, writer(state), attempt=1, step=1, full=False, loss=1.0, val_loss=1.0)
        return run, load_model(run)

    return make


def _record(run: Run) -> dict[str, object]:
    found: dict[str, object] = json.loads((run.path / "model_best.int8.json").read_text())
    return found


def test_a_model_that_int8_spoils_is_served_in_float16_with_a_warning(publish: Publish, layout: Layout) -> None:
    run, loaded = publish(spoiled=True)

    packed = QualityGate().pack(loaded, "int8", run=run, layout=layout)

    assert packed.weights == "fp16"
    assert [warning.code for warning in packed.warnings] == [REFUSED]
    record = _record(run)
    assert (record["verdict"], record["sha256"], record["tokens"]) == ("refused", loaded.info.sha256, 4096)


def test_a_model_that_int8_does_not_spoil_is_served_in_it(publish: Publish, layout: Layout) -> None:
    run, loaded = publish()
    ids = np.random.default_rng(0).integers(280, size=5000).astype(np.uint16)
    validation = dataset_of(loaded.config, layout).val
    validation.parent.mkdir(parents=True)
    np.save(validation, ids)

    packed = QualityGate().pack(loaded, "int8", run=run, layout=layout)

    assert (packed.weights, packed.warnings) == ("int8", ())
    record = _record(run)
    assert (record["verdict"], record["tokens"], record["torch"]) == ("accepted", 4096, torch.__version__)
    assert record["loss_int8"] == pytest.approx(record["loss_fp32"], rel=0.01)
    assert loaded.model.lm_head.weight.numel() == 0


def test_a_recorded_result_is_not_measured_again(
    publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loaded = publish(spoiled=True)
    QualityGate().pack(loaded, "int8", run=run, layout=layout)
    monkeypatch.setattr(quality_gate, "mean_loss", None)  # calling it would fail

    packed = QualityGate().pack(load_model(run), "int8", run=run, layout=layout)
    tolerant = QualityGate(max_increase=1000).pack(load_model(run), "int8", run=run, layout=layout)

    assert [packed.weights, tolerant.weights] == ["fp16", "int8"]


def test_a_result_of_another_checkpoint_is_measured_again(publish: Publish, layout: Layout) -> None:
    run, loaded = publish(spoiled=True)
    stale = GateResult("0" * 64, torch.__version__, cpu_features(), 4096, 1.0, 1.0, "accepted")
    (run.path / "model_best.int8.json").write_text(json.dumps(dataclasses.asdict(stale)))

    assert QualityGate().pack(loaded, "int8", run=run, layout=layout).weights == "fp16"
    assert _record(run)["verdict"] == "refused"


@pytest.mark.parametrize("change", [{"sha256": "1" * 64}, {"torch": "1.0"}, {"cpu_flags": ("mmx",)}], ids=str)
def test_a_result_counts_for_its_checkpoint_torch_and_cpu(change: dict[str, Any]) -> None:
    result = GateResult("0" * 64, torch.__version__, cpu_features(), 4096, 1.0, 1.0)

    assert result.answers("0" * 64)
    assert not dataclasses.replace(result, **change).answers("0" * 64)


@pytest.mark.parametrize(
    ("fp32", "int8", "accepted"),
    [(2.0, 2.02, True), (2.0, 2.03, False), (2.0, 1.9, True), (None, 1.0, False), (1.0, None, False)],
)
def test_an_increase_of_one_percent_is_accepted(fp32: float | None, int8: float | None, *, accepted: bool) -> None:
    assert GateResult("0" * 64, "2", (), 4096, fp32, int8).accepts(0.01 + 1e-9) is accepted


def test_a_result_that_cannot_be_written_is_kept_in_memory(
    publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loaded = publish(spoiled=True)
    (run.path / "model_best.int8.json").mkdir()  # a file cannot take its place
    gate = QualityGate()
    gate.pack(loaded, "int8", run=run, layout=layout)
    monkeypatch.setattr(quality_gate, "mean_loss", None)

    assert gate.pack(load_model(run), "int8", run=run, layout=layout).weights == "fp16"


def test_other_formats_are_not_compared(publish: Publish, layout: Layout) -> None:
    run, loaded = publish(spoiled=True)

    packed = QualityGate().pack(loaded, "fp16", run=run, layout=layout)

    assert (packed.weights, packed.warnings) == ("fp16", ())
    assert not (run.path / "model_best.int8.json").exists()
