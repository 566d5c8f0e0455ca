"""Heads of one training are found again at another step, and not with another seed or without training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model_core.attention.heads.matching import Matching, match_heads
from model_core.attention.heads.pattern_capture import capture_patterns
from model_core.attention.heads.patterns import HeadPatterns, patterns_file, thin_patterns, windows_key
from model_core.attention.heads.probe import Probe
from model_core.checkpoint import LoadedModel, load_model, parameters_state, writer
from model_core.config import ExperimentConfig
from model_core.errors import DatasetNotReady, InvalidData, InvalidParameter
from model_core.gpt import GPT
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import gpt2_tokenizer

T = 48
SHAPE = {"n_layer": 3, "n_embd": 32, "n_head_list": [4, 2, 1], "block_size": T}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.under(tmp_path)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    found = Dataset.named("words", tmp_path / "datasets" / "words")
    found.directory.mkdir(parents=True)
    ids = np.random.default_rng(0).integers(0, 512, 4000).astype(np.uint16)
    for split in ("train", "val", "test"):
        np.save(found.split(split), ids)
    return found


def publish(layout: Layout, name: str, *, seed: int, sharpness: float, change: float = 0.0) -> LoadedModel:
    """A run whose heads have patterns of their own: queries and keys of `sharpness`, changed as by some steps."""
    training = {"batch_size": 1, "sequence_length": 16, "total_batch_size": 16}
    config = ExperimentConfig.model_validate({"experiment_name": name, "model": SHAPE, "training": training})
    torch.manual_seed(seed)
    model = GPT(config.model)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for block in model.blocks:
            weight = block.attn.c_attn.weight
            weight[: 2 * SHAPE["n_embd"]] *= sharpness
            weight += change * weight.std() * torch.randn(weight.shape, generator=generator)
    run = Run.create(layout.run(name), config)
    state = parameters_state(model, config, gpt2_tokenizer(), 1)
    run.publish("model_best.pt", writer(state), attempt=1, step=1, full=False, loss=1.0, val_loss=1.0)
    return load_model(run, "best")


def patterns(layout: Layout, dataset: Dataset, loaded: LoadedModel) -> HeadPatterns:
    found = HeadPatterns.load(capture_patterns(loaded, loaded.config.experiment_name, layout, dataset, tokens=T))
    assert found is not None
    return found


def matched(layout: Layout, dataset: Dataset, one: LoadedModel, two: LoadedModel) -> Matching:
    return match_heads(patterns(layout, dataset, one), patterns(layout, dataset, two))


def test_two_steps_of_one_run_match_and_two_seeds_do_not(layout, dataset) -> None:
    first = publish(layout, "first", seed=1, sharpness=12.0)
    later = publish(layout, "later", seed=1, sharpness=12.0, change=0.02)
    other = publish(layout, "other", seed=2, sharpness=12.0)
    again = matched(layout, dataset, first, later)
    assert all(pair.a == pair.b and pair.mutual for pair in again.pairs)
    assert {pair.similar for pair in again.pairs} <= {True, None}
    assert any(pair.similar for pair in again.pairs)
    assert not any(pair.similar for pair in matched(layout, dataset, first, other).pairs)


def test_untrained_heads_are_not_found_again(layout, dataset) -> None:
    one, two = (publish(layout, name, seed=seed, sharpness=1.0) for name, seed in (("one", 1), ("two", 2)))
    assert [pair.similar for pair in matched(layout, dataset, one, two).pairs] == [None] * 7


def test_patterns_are_those_of_the_probes_windows_and_captured_once(layout, dataset) -> None:
    loaded = publish(layout, "first", seed=1, sharpness=12.0)
    path = capture_patterns(loaded, "first", layout, dataset, tokens=T)
    assert path == patterns_file(layout, "first", loaded.info.sha256, windows_key(dataset, T))
    written = path.stat().st_ino
    assert capture_patterns(loaded, "first", layout, dataset, tokens=T).stat().st_ino == written
    found, probe = HeadPatterns.load(path), Probe.of(dataset, T)
    assert found is not None
    assert (found.probe, found.heads, found.levels.shape[:2]) == (probe.sha256, (4, 2, 1), (7, len(probe.windows)))


def test_windows_that_a_model_cannot_read_are_refused(layout, dataset) -> None:
    loaded = publish(layout, "first", seed=1, sharpness=1.0)
    with pytest.raises(InvalidParameter):
        capture_patterns(loaded, "first", layout, dataset, tokens=T + 1)
    np.save(dataset.val, np.arange(T - 1, dtype=np.uint16))
    with pytest.raises(InvalidData):
        capture_patterns(loaded, "first", layout, dataset, tokens=T)


def test_another_text_has_another_key(dataset) -> None:
    key = windows_key(dataset, T)
    assert windows_key(dataset, T) == key
    assert windows_key(dataset, T - 1) != key
    np.save(dataset.val, np.arange(999, dtype=np.uint16))
    assert windows_key(dataset, T) != key
    dataset.val.unlink()
    with pytest.raises(DatasetNotReady):
        windows_key(dataset, T)


def test_a_run_keeps_the_patterns_that_were_written_last(tmp_path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.npz").touch()
        (tmp_path / f"{number}.json").touch()
    thin_patterns(tmp_path, most=2)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert len(list(tmp_path.glob("*.json"))) == 5
