"""Checkpoints: their contents, refused files, and names of parameters without wrappers."""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from model_core.checkpoint import State, clean, load_file, load_model, load_parameters, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.config_loader import parse_config
from model_core.errors import CheckpointDamaged, CheckpointMismatch, CheckpointNotFound, CheckpointRefused
from model_core.gpt import GPT
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, train_bpe


def tiny(**model: Any) -> ExperimentConfig:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 16, "vocab_size": 300, "block_size": 8, **model}
    training = {"batch_size": 1, "sequence_length": 8, "total_batch_size": 8, "warmup_steps": 0}
    data = {"tokenizer": {"type": "bpe", "vocab_size": 300}}
    return parse_config({"experiment_name": "r", "model": shape, "training": training, "data": data}).config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["some text"], 300)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "r", tiny())


def publish(run: Run, state: State) -> None:
    run.publish("model_best.pt", writer(state), attempt=1, step=0, full=False, loss=None, val_loss=None)


def state_of(model: GPT, config: ExperimentConfig, tokenizer: Tokenizer) -> State:
    return parameters_state(model, config, tokenizer, step=0)


def test_a_loaded_model_is_the_one_that_was_saved(run: Run, tokenizer: Tokenizer) -> None:
    model, idx = GPT(tiny().model), torch.arange(8)[None]
    publish(run, state_of(model, tiny(), tokenizer))
    loaded = load_model(run)
    assert torch.equal(loaded.model(idx)[0], model(idx)[0])
    assert (loaded.config, loaded.tokenizer.sha256, loaded.model.training) == (tiny(), tokenizer.sha256, False)
    assert loaded.model.lm_head.weight is loaded.model.transformer["wte"].weight


COMPILES = (pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"))


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, pytest.param(torch.compile, marks=COMPILES)])
def test_no_wrapper_is_part_of_a_name_on_disk(run: Run, tokenizer: Tokenizer, wrap: Any) -> None:
    model = GPT(tiny().model)
    assert not wrap(model).state_dict().keys() & model.state_dict().keys()
    publish(run, state_of(wrap(model), tiny(), tokenizer))
    on_disk = torch.load(run.path / "model_best.pt", weights_only=True)["model"]
    assert on_disk.keys() == model.state_dict().keys()


def test_a_wrapper_is_a_whole_part_of_a_name() -> None:
    assert list(clean({"module._orig_mod.h.0._orig_mod.x": 1, "submodule.y": 2})) == ["h.0.x", "submodule.y"]


def test_a_checkpoint_from_before_heads_could_differ_is_uniform(run: Run, tokenizer: Tokenizer) -> None:
    model = GPT(tiny().model)
    state = state_of(model, tiny(), tokenizer)
    del state["config"]["model"]["n_head_list"], state["config"]["model"]["head_dim"]
    publish(run, state)
    loaded = load_model(run)
    assert loaded.config.model.heads == (4, 4)
    assert torch.equal(loaded.model(torch.arange(8)[None])[0], model(torch.arange(8)[None])[0])


def test_missing_damaged_and_unfit_are_three_codes(run: Run, tokenizer: Tokenizer) -> None:
    publish(run, state_of(GPT(tiny(n_embd=32).model), tiny(), tokenizer))
    with pytest.raises(CheckpointNotFound) as missing:
        load_model(run, "final")
    with pytest.raises(CheckpointMismatch, match=r"model_best\.pt.* transformer\.wte.* 32\)") as unfit:
        load_model(run)
    (run.path / "model_best.pt").write_bytes(b"other bytes")
    with pytest.raises(CheckpointDamaged) as damaged:
        load_model(run)
    codes = [error.value.code for error in (missing, damaged, unfit)]
    assert codes == ["checkpoint_not_found", "checkpoint_damaged", "checkpoint_mismatch"]


def test_parameters_that_do_not_fit_are_named_and_change_nothing() -> None:
    model = GPT(tiny().model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {f"{name}": torch.ones_like(tensor) for name, tensor in before.items()}
    weights["transformer.extra"] = weights.pop("transformer.h.1.mlp.c_fc.bias")
    with pytest.raises(CheckpointMismatch, match=r"transformer\.h\.1\.mlp\.c_fc\.bias.* transformer\.extra"):
        load_parameters(model, weights, "x.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@dataclass
class GPTConfig:
    """As programs before this one saved their configurations."""

    n_layer: int = 2


@pytest.mark.parametrize("held", [GPTConfig(), argparse.Namespace(n_layer=2), Path("x")])
def test_a_file_that_pickles_an_object_is_refused_with_the_way_to_convert_it(held: object) -> None:
    file = io.BytesIO()
    torch.save({"model": {}, "config": held}, file)
    file.seek(0)
    with pytest.raises(CheckpointRefused, match=f"{type(held).__module__}.{type(held).__qualname__}") as refused:
        load_file(file, "old.pt")
    assert "torch.save({'model': model.state_dict(), 'model_args': {'n_layer'" in str(refused.value.hint)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and no more", b"\x80\x02}q\x00(X\x05\x00\x00\x00mo", bytes(100)])
def test_what_is_no_file_of_torch_is_damaged(data: bytes) -> None:
    with pytest.raises(CheckpointDamaged, match=r"'x\.pt'"):
        load_file(io.BytesIO(data), "x.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_torch_file_cut_anywhere_is_damaged(share: float) -> None:
    whole = io.BytesIO()
    torch.save({"model": torch.zeros(3)}, whole)
    with pytest.raises(CheckpointDamaged):
        load_file(io.BytesIO(whole.getvalue()[: int(share * whole.tell())]), "x.pt")
