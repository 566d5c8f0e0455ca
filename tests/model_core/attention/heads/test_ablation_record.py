"""Options, sample, cost, finished passes and results of an ablation."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_core.attention.heads.ablation_record import (
    AblationOptions,
    Measurement,
    Part,
    PartialFile,
    Sample,
    ablation_name,
    build_result,
    count_passes,
    delete_result,
    list_results,
    parts,
    read_result,
    read_sample,
    result_file,
    result_table,
    write_result,
)
from model_core.errors import InvalidData, ResultNotFound
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout
from model_core.tokenizer import train_bpe
from tests.model_core.attention.heads.ablation_fixtures import add_dataset

INFO = CheckpointInfo("model_best.pt", 7, 1.0, 1.0, full=False, sha256="ab" * 32, size_bytes=1, created_at="")
SAMPLE = Sample("test", np.arange(4 * 17).reshape(4, 17))


def options_of(**given: Any) -> AblationOptions:
    return AblationOptions.model_validate(given)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return add_dataset(tmp_path / "tales", train_bpe(["a tale of two heads " * 40], 280), tokens=1001)


@pytest.mark.parametrize(
    ("heads", "options", "passes"),
    [
        ((8, 4, 2, 1), {}, (8 + 1 + 4) + 0.75 * (4 + 1 + 4) + 0.5 * (2 + 1 + 4) + 0.25),
        ((12,) * 12, {}, 6.5 * (12 + 1 + 4)),
        ((4, 2), {"baseline": "resample", "draws": 3}, ((4 + 1) * 3 + 3) + 0.5 * ((2 + 1) * 3 + 3)),
    ],
    ids=["quickstart", "gpt2", "resample"],
)
def test_passes_before_a_layer_are_not_counted(heads: Any, options: Any, passes: float) -> None:
    assert count_passes(heads, options_of(**options)) == pytest.approx(passes)


def test_windows_are_at_even_places_and_do_not_overlap(dataset: Dataset) -> None:
    sample = read_sample(dataset, options_of(tokens=480), block_size=32, vocab_size=300)
    ids = np.load(dataset.test)
    starts = [next(s for s in range(1001) if np.array_equal(ids[s : s + 33], row)) for row in sample.ids]
    assert (sample.windows, sample.length) == (15, 32)
    assert (starts[0], starts[-1]) == (0, 1001 - 33)
    assert min(np.diff(starts)) >= 32


def test_a_short_split_gives_fewer_windows_and_a_small_sample_shorter_ones(dataset: Dataset) -> None:
    short = read_sample(dataset, options_of(tokens=16_384), block_size=256, vocab_size=300)
    small = read_sample(dataset, options_of(tokens=64), block_size=256, vocab_size=300)
    assert (short.windows, short.length) == (3, 256)
    assert (small.windows, small.length) == (8, 8)


@pytest.mark.parametrize(
    ("options", "block_size", "vocab_size"),
    [
        ({}, 1001, 300),
        ({}, 512, 300),
        ({"baseline": "resample", "draws": 4}, 250, 300),
        ({}, 32, 100),
    ],
    ids=["shorter-than-a-window", "one-window", "no-window-for-each-draw", "unknown-ids"],
)
def test_a_split_that_gives_no_sample_is_refused(
    dataset: Dataset, options: Any, block_size: int, vocab_size: int
) -> None:
    with pytest.raises(InvalidData):
        read_sample(dataset, options_of(**options), block_size=block_size, vocab_size=vocab_size)


def test_a_name_changes_with_checkpoint_sample_and_options() -> None:
    other = Sample("test", SAMPLE.ids + 1)
    names = {
        ablation_name(INFO, options_of(), SAMPLE),
        ablation_name(INFO, options_of(), other),
        ablation_name(replace(INFO, sha256="cd" * 32), options_of(), SAMPLE),
        *(
            ablation_name(INFO, options_of(**{key: value}), SAMPLE)
            for key, value in [("baseline", "zero"), ("draws", 5), ("split", "val"), ("tokens", 64)]
        ),
    }
    assert len(names) == 7
    assert ablation_name(INFO, options_of(checkpoint="step=7"), SAMPLE) in names


def test_what_a_kill_leaves_of_a_line_counts_as_no_pass(tmp_path: Path) -> None:
    result = tmp_path / "made" / "model_best-00000000-00000000.json"
    first, second = (Measurement(Part("head", 1, head), 0, (0.1, -0.25), (1e-9, 3.0), 0.5) for head in (0, 1))
    partial = PartialFile(result)
    assert partial.read() == []
    partial.append(first)
    file = next(result.parent.iterdir())
    file.write_bytes(file.read_bytes() + b'\n{"part": {"kind": "he')
    partial.append(second)
    partial.append(second)
    assert partial.read() == [first, second]


def measurements() -> list[Measurement]:
    """Two layers, of two heads and one, over two windows in chunks of one."""
    changes = {
        Part("clean"): (2.0, 4.0),
        Part("head", 0, 0): (1.5, 1.5),
        Part("head", 0, 1): (-1.0, 2.0),
        Part("layer", 0): (4.0, 5.0),
        Part("null", 0, draw=0): (0.5, 0.5),
        Part("null", 0, draw=1): (0.7, 0.7),
        Part("head", 1, 0): (3.0, 3.0),
    }
    return [
        Measurement(part, window, (values[window],), (0.25,), 0.5)
        for window in (1, 0)
        for part, values in changes.items()
    ]


def test_a_result_tells_noise_null_and_additivity() -> None:
    sample = Sample("test", np.zeros((2, 9), dtype=np.int64))
    result = build_result(
        measurements(), heads=(2, 1), head_dims=(4, 8), options=options_of(draws=2), sample=sample, facts={}
    )
    heads = [(head["change"], head["stderr"], head["clear"], head["above_null"]) for head in result["heads"]]
    assert heads == [(1.5, 0.0, True, True), (0.5, pytest.approx(1.5), False, False), (3.0, 0.0, True, None)]
    first, last = result["layers"]
    assert first["null"] == {"mean": 0.6, "sd": pytest.approx(0.02**0.5), "draws": 2}
    assert (first["change"], first["sum_of_heads"], first["ratio"]) == (4.5, 2.0, 2.25)
    assert (last["change"], last["null"], last["ratio"]) == (3.0, None, 1.0)
    assert (result["loss"], result["sample"]["tokens"], result["seconds"]) == (3.0, 16, 7.0)
    rows = list(csv.DictReader(io.StringIO(result_table(result))))
    assert [(row["layer"], row["head"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("0", "all"), ("1", "0"), ("1", "all"),
    ]  # fmt: skip
    assert (rows[1]["above_null"], rows[3]["above_null"]) == ("False", "")


def test_a_result_takes_the_place_of_its_passes_until_it_is_deleted(tmp_path: Path) -> None:
    layout, name = Layout.under(tmp_path), ablation_name(INFO, options_of(), SAMPLE)
    path = result_file(layout, "mine", name)
    PartialFile(path).append(measurements()[0])
    assert list_results(layout, "mine") == []
    write_result(path, {"loss": 1.5})
    assert list_results(layout, "mine") == [name]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert read_result(layout, "mine", name) == {"loss": 1.5}
    PartialFile(path).append(measurements()[0])
    delete_result(layout, "mine", name)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ResultNotFound):
        read_result(layout, "mine", name)


@pytest.mark.parametrize("name", ["../config", "model_best", "model_best-00000000-0000000", ""])
def test_no_other_name_reaches_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultNotFound):
        read_result(Layout.under(tmp_path), "mine", name)


@pytest.mark.parametrize("baseline", ["zero", "resample"])
def test_parts_are_distinct(baseline: str) -> None:
    listed = list(parts((3, 1, 2), options_of(baseline=baseline, draws=3)))
    assert len(set(listed)) == len(listed)
    assert [part.layer for part in listed] == sorted(part.layer for part in listed)
