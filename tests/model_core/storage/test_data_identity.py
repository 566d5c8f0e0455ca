"""Identity of a dataset's content, and which files are read for it."""

import os
from pathlib import Path

import numpy as np
import pytest

from model_core.storage.data_identity import HASHES, identify, identify_quickly, record_hashes
from model_core.storage.dataset import MANIFEST, SPLITS, Dataset
from model_core.storage.files import read_json, sha256_of, write_json


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Token files without a manifest."""
    dataset = Dataset.named("words", tmp_path)
    for number, split in enumerate(SPLITS):
        np.save(dataset.split(split), np.arange(10 * number, 10 * number + 10, dtype=np.uint16))
    return dataset


def forge_record(dataset: Dataset) -> None:
    """Give the training file another hash in the record; whoever trusts the record has another identity."""
    record = read_json(dataset.directory / HASHES)
    record["files"][dataset.train.name]["sha256"] = "0" * 64
    write_json(dataset.directory / HASHES, record)


def test_a_file_is_read_once(dataset: Dataset) -> None:
    first = identify(dataset).sha256
    assert identify(dataset).sha256 == first
    forge_record(dataset)
    assert identify(dataset).sha256 != first  # of the record: the file was not read


def test_a_file_with_another_time_is_read_again(dataset: Dataset) -> None:
    first = identify(dataset).sha256
    forge_record(dataset)
    os.utime(dataset.train)
    assert identify(dataset).sha256 == first
    assert read_json(dataset.directory / HASHES)["files"][dataset.train.name]["sha256"] == sha256_of(dataset.train)


def test_names_do_not_count_and_contents_and_their_order_do(dataset: Dataset, tmp_path: Path) -> None:
    other = Dataset.named("other", tmp_path / "other")
    other.directory.mkdir()
    for split in SPLITS:
        other.split(split).write_bytes(dataset.split(split).read_bytes())
    assert identify(other) == identify(dataset)
    other.train.write_bytes(dataset.val.read_bytes())
    other.val.write_bytes(dataset.train.read_bytes())
    assert identify(other) != identify(dataset)


def test_a_request_does_not_read_more_than_it_may(dataset: Dataset) -> None:
    size = sum(dataset.split(split).stat().st_size for split in SPLITS)
    assert identify_quickly(dataset, size - 1) is None
    assert identify_quickly(dataset, size) == identify(dataset)
    assert identify_quickly(dataset, 0) == identify(dataset)  # by now the record has every file


def test_a_new_dataset_is_recorded_without_reading_it(dataset: Dataset) -> None:
    entries = {split: {"file": dataset.split(split).name, "sha256": str(n) * 64} for n, split in enumerate(SPLITS)}
    write_json(dataset.directory / "tokenizer.json", {"sha256": "a" * 64})
    write_json(dataset.directory / MANIFEST, {"splits": entries, "tokenizer": {"file": "tokenizer.json"}})
    record_hashes(dataset)
    assert identify_quickly(dataset, 0) is not None
    os.utime(dataset.val)
    assert identify(dataset).edited == ("words_val.npy",)  # it is read, and the manifest has another hash


def test_a_stop_ends_the_reading(dataset: Dataset) -> None:
    def stop(done: int, of: int) -> None:
        raise InterruptedError(f"{done} of {of}")

    with pytest.raises(InterruptedError):
        identify(dataset, stop)
    assert not (dataset.directory / HASHES).exists()
