"""Initial checkpoints: of another run, of a file, of nanoGPT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_core.checkpoint import State, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.data.loader import LoaderConfig, load_tokens
from model_core.errors import CheckpointFileNotFound, CheckpointMismatch, CheckpointRefused
from model_core.gpt import GPT
from model_core.hardware.device import Machine, decide
from model_core.storage.events import read_events
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from model_core.train import main
from model_core.training.evaluate import mean_loss
from model_core.training.resume import (
    InitCheckpoint,
    find_init_checkpoint,
    load_init_checkpoint,
    nanogpt_model,
    nanogpt_state_dict,
    reload_init_checkpoint,
)
from tests.model_core.event_log import series_of

pytestmark = pytest.mark.usefixtures("signals")
ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 32, "vocab_size": 384, "dropout": 0.0, "bias": True}
SHAPE = {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_head_list": None, "vocab_size": 384, "block_size": 32}


def tiny_config(reference: str, **model: Any) -> ExperimentConfig:
    data = {"tokenizer": {"type": "bpe", "vocab_size": 384}}
    training = {"batch_size": 1, "sequence_length": 8, "total_batch_size": 8}
    checkpoint = {"load_checkpoint": reference}
    tree = {"model": {**SHAPE, **model}, "training": training, "data": data, "checkpoint": checkpoint}
    return parse_config(tree).config


def loaded(config: ExperimentConfig, layout: Layout) -> InitCheckpoint:
    found = find_init_checkpoint(config, layout)
    assert found is not None
    return load_init_checkpoint(found, config.model)


@pytest.fixture
def source() -> GPT:
    """Every weight and bias of it is a number of its own."""
    torch.manual_seed(3)
    model = GPT(tiny_config("-").model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def nanogpt(model: GPT, *, bias: bool = True, prefix: str = "", **args: Any) -> State:
    """A checkpoint as nanoGPT's train.py writes it, with the masks that some versions save."""
    weights: dict[str, Tensor] = {f"{prefix}{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    kept = {name: tensor for name, tensor in weights.items() if bias or not name.endswith("bias")}
    masks = {f"{prefix}transformer.h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in range(2)}
    facts = {"optimizer": {"state": {}}, "iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x"}}
    return {"model": kept | masks, "model_args": {**ARGS, "bias": bias, **args}, **facts}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], str]:
    """Save something; returns the path."""

    def save(content: object) -> str:
        torch.save(content, tmp_path / "ckpt.pt")
        return str(tmp_path / "ckpt.pt")

    return save


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_nanogpt_checkpoint_is_the_same_model(source: GPT, saved: Any, prefix: str, tmp_path: Path) -> None:
    reference = saved(nanogpt(source, prefix=prefix))
    origin = loaded(tiny_config(reference), Layout.under(tmp_path))
    weights = nanogpt_state_dict(origin.state, source, origin.name)
    assert (origin.full, origin.model.heads, weights.keys()) == (False, (4, 4), source.state_dict().keys())
    assert all(torch.equal(weights[name], tensor) for name, tensor in source.state_dict().items())


def test_biases_that_nanogpt_left_out_are_zero(source: GPT) -> None:
    without = {n: torch.zeros_like(t) if n.endswith(".bias") else t for n, t in source.state_dict().items()}
    weights = nanogpt_state_dict(nanogpt(source, bias=False), GPT(tiny_config("-").model), "ckpt.pt")
    assert weights.keys() == without.keys()
    assert all(torch.equal(weights[name], without[name]) for name in without)


def test_arguments_without_a_list_of_heads_are_a_uniform_model_and_with_one_they_are_not() -> None:
    assert nanogpt_model({"model_args": ARGS}, "x").heads == (4, 4)
    assert nanogpt_model({"model_args": {**ARGS, "n_head_list": [4, 2]}}, "x").heads == (4, 2)


def test_a_head_of_its_own_is_refused(source: GPT) -> None:
    content = nanogpt(source)
    content["model"]["lm_head.weight"] = torch.zeros(384, 16)
    with pytest.raises(CheckpointMismatch, match=r"lm_head\.weight.* transformer\.wte\.weight"):
        nanogpt_state_dict(content, source, "ckpt.pt")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {}, "model_args": {**ARGS, "n_head": 5}}, r"model_args.*5 heads.* 16"),
        ({"weights": {}}, "weights.* 'model'.* 'model_args'"),
        ([1, 2], "list"),
    ],
)
def test_a_file_that_holds_no_model_is_refused(saved: Any, content: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=says):
        loaded(tiny_config(saved(content)), Layout.under(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFileNotFound, match=r"'gone/ckpt\.pt'"):
        loaded(tiny_config("gone/ckpt.pt"), Layout.under(tmp_path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"n_head": 2},
            r"model\.n_head_list is \[2, 2\] here and \[4, 4\] in .*ckpt\.pt'; model\.head_dim is \[8, 8\]",
        ),
        ({"block_size": 16}, r"model\.block_size is 16 here and 32 in"),
        ({"n_layer": 3}, r"model\.n_layer is 3 here and 2 in"),
    ],
)
def test_a_model_of_another_shape_is_refused_with_both_values(
    source: GPT, saved: Any, changes: dict[str, int], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch, match=says):
        loaded(tiny_config(saved(nanogpt(source)), **changes), Layout.under(tmp_path))


@pytest.mark.parametrize("same", [{"n_head": 1, "n_head_list": [4, 4]}, {"head_dim": 4}, {"dropout": 0.3}])
def test_the_same_shape_in_other_words_fits(source: GPT, saved: Any, same: dict[str, Any], tmp_path: Path) -> None:
    assert loaded(tiny_config(saved(nanogpt(source)), **same), Layout.under(tmp_path)).state["iter_num"] == 7


def test_a_run_of_the_name_comes_before_a_file_of_the_name(
    source: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout = Layout.under(Path("data"))
    run = Run.create(layout.run("first"), tiny_config("-"))
    state = parameters_state(source, tiny_config("-"), train_bpe(["text"], 384), 0)
    run.publish("model_best.pt", writer(state), attempt=1, step=0, full=False, loss=None, val_loss=None)
    names = [
        loaded(tiny_config(r), layout).name for r in ("first", "first/model_best.pt", str(run.path / "model_best.pt"))
    ]
    assert names == ["first/model_best.pt"] * 3


def test_a_file_that_was_pruned_meanwhile_is_resolved_again(source: GPT, tmp_path: Path) -> None:
    layout, config = Layout.under(tmp_path), tiny_config("first")
    run = Run.create(layout.run("first"), tiny_config("-"))
    state = parameters_state(source, tiny_config("-"), train_bpe(["text"], 384), 0)
    run.publish("model_00001.pt", writer(state), attempt=1, step=1, full=True, loss=None, val_loss=None)
    found = find_init_checkpoint(config, layout)
    run.publish("model_00002.pt", writer(state), attempt=1, step=2, full=True, loss=None, val_loss=None)
    assert reload_init_checkpoint(found, config, layout).name == "first/model_00001.pt"
    for file in run.path.glob("model_00001.*"):
        file.unlink()
    assert reload_init_checkpoint(found, config, layout).name == "first/model_00002.pt"


def as_first_step(model: dict[str, Any], file: str) -> dict[str, Any]:
    """One step whose loss is that of the model it began with."""
    training = {"max_steps": 1, "warmup_steps": 0}
    return {"model": model, "training": training, "checkpoint": {"load_checkpoint": file}}


def test_a_nanogpt_checkpoint_begins_a_run_by_hand(source: GPT, saved: Any, tiny: Any, tmp_path: Path) -> None:
    reference = saved(nanogpt(source, bias=False, prefix="_orig_mod."))
    file, run = tiny("ours", **as_first_step(SHAPE, reference)), tmp_path / "exp" / "ours"
    assert main(["--config", str(file)]) == 0
    (warning,) = [event for event in read_events(run / "events.jsonl") if event.get("code") == "weights_only"]
    assert reference in warning["detail"]
    source.load_state_dict(nanogpt_state_dict(nanogpt(source, bias=False), source, "ckpt.pt"))
    tokens = load_tokens(tmp_path / "text_data" / "text_val.npy")
    runtime = decide(parse_config({"device": {"dtype": "float32"}}).config, Machine("Linux", cores=1))
    assert series_of(run, "validation", "val_loss")[0] == pytest.approx(
        mean_loss(source, tokens, LoaderConfig(2, 16), runtime, 2), rel=1e-6
    )


def test_what_does_not_fit_takes_no_name(source: GPT, saved: Any, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    file = tiny("unfit", **as_first_step({**SHAPE, "n_head": 2}, saved(nanogpt(source))))
    assert main(["--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert all(value in said for value in ("model.n_head_list", "[2, 2]", "[4, 4]"))
    assert not (tmp_path / "exp" / "unfit").exists()


def test_a_pickled_configuration_is_refused_on_one_line(saved: Any, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    file = tiny("old", **as_first_step(SHAPE, saved({"model": {}, "config": tmp_path})))
    assert main(["--config", str(file)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "ckpt.pt'" in line
    assert "pathlib" in line
    assert "torch.save({'model': model.state_dict(), 'model_args'" in line


def test_a_copied_full_state_is_gone_on_from_exactly(tiny: Any, tmp_path: Path) -> None:
    main(["--config", str(tiny("first"))])
    copy = tmp_path / "copies" / "state.pt"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "exp" / "first" / "model_00015.pt").read_bytes())
    assert main(["--config", str(tiny("second", checkpoint={"load_checkpoint": str(copy)}))]) == 0
    first, second = (series_of(tmp_path / "exp" / name) for name in ("first", "second"))
    assert second == {step: loss for step, loss in first.items() if step > 15}


def test_a_new_run_keeps_its_own_settings_of_the_optimizer(tiny: Any, tmp_path: Path) -> None:
    main(["--config", str(tiny("first"))])
    begin = {"load_checkpoint": "first/model_00015.pt"}
    main(["--config", str(tiny("second", checkpoint=begin, training={"weight_decay": 0.5, "eps": 1e-6}))])
    state = torch.load(tmp_path / "exp" / "second" / "model_latest.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert [(group["weight_decay"], group["eps"]) for group in groups] == [(0.5, 1e-6), (0.0, 1e-6)]
