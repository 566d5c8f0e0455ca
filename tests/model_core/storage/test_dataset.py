"""A dataset on disk: prepared here, or a user's own files."""

import json

import numpy as np
import pytest

from model_core.config_loader import parse_config
from model_core.data.ensure import prepare
from model_core.errors import DatasetNotReady, ExampleNotFound, InvalidData
from model_core.report import count_train_tokens
from model_core.storage.dataset import Dataset, dataset_of, load_tokenizer
from model_core.storage.files import Layout

DOCUMENTS = [f"Document {number} has its own text, number {number}." for number in range(300)]


@pytest.fixture
def dataset(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return prepare(f"file:{corpus}", tmp_path / "mine", name="mine", split=(0.8, 0.1, 0.1))


@pytest.fixture
def own(tmp_path):
    dataset = Dataset.named("own", tmp_path / "own")
    dataset.directory.mkdir()
    for split in ("train", "val", "test"):
        np.save(dataset.split(split), np.arange(10, dtype=np.uint16))
    return dataset


def test_an_example_is_read_without_the_others(dataset):
    wanted = dataset.example(17)
    file = dataset.directory / "test_examples.json"
    written = file.read_bytes()
    start, end = (int(place) for place in np.load(dataset.directory / "test_examples_index.npy")[17])
    file.write_bytes(b"\0" * start + written[start:end] + b"\0" * (len(written) - end))
    assert dataset.example(17) == wanted
    assert wanted.id == 17
    assert dataset.tokenizer().decode(wanted.tokens) == wanted.text


def test_examples_are_the_test_split_in_order(dataset):
    examples = json.loads((dataset.directory / "test_examples.json").read_text(encoding="utf-8"))
    assert [example["id"] for example in examples] == list(range(30)) == list(range(dataset.example_count))
    eot = dataset.tokenizer().eot
    assert np.load(dataset.test).tolist() == [token for e in examples for token in (*e["tokens"], eot)]


@pytest.mark.parametrize("number", [-1, 30, 10**12])
def test_an_example_beyond_the_last_names_the_range(dataset, number):
    with pytest.raises(ExampleNotFound, match="0 to 29"):
        dataset.example(number)


def test_bytes_a_token_come_from_the_manifest(dataset):
    text_bytes = sum(len(dataset.example(number).text) for number in range(30))
    assert dataset.bytes_per_token("test") == text_bytes / len(np.load(dataset.test))


def test_a_users_own_files_need_no_manifest(own):
    assert own.missing() == []
    assert own.manifest() is None
    assert own.tokenizer().kind == "gpt2"
    assert own.bytes_per_token("val") is None
    assert own.example_count == 0
    with pytest.raises(DatasetNotReady, match=r"test_examples\.json"):
        own.example(0)


def test_a_users_own_examples_need_no_index(own):
    examples = [{"id": n, "text": f"text {n}", "tokens": [n]} for n in range(3)]
    (own.directory / "test_examples.json").write_text(json.dumps(examples))
    assert (own.example_count, own.example(2).text) == (3, "text 2")


def test_another_datasets_manifest_in_the_folder_is_not_taken(dataset):
    neighbour = Dataset.named("neighbour", dataset.directory)
    assert neighbour.manifest() is None
    assert len(neighbour.missing()) == 3


WITHOUT_TOKENIZER = '{"splits": {"train": {"file": "mine_train.npy"}}}'


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"splits": {"train": []}}', WITHOUT_TOKENIZER, '"splits"', "\xff"]
)
def test_a_manifest_that_is_none_is_named(dataset, text):
    (dataset.directory / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidData, match=r"mine/manifest\.json is (not JSON|not UTF-8|JSON of another kind)"):
        dataset.manifest()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "bpe", "tokens": [1], "sha256": ""}', "null"])
def test_a_tokenizer_that_is_none_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InvalidData, match=r"tokenizer\.json is (not JSON|JSON of another kind)"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_files_are_named_by_the_dataset_below_a_data_root_and_by_the_configuration_without(tmp_path):
    config = parse_config({"data": {"data_dir": "some\\folder", "train_file": "mine_train.npy"}}).config
    below, by_hand = dataset_of(config, Layout.under(tmp_path)), dataset_of(config, Layout.of(config))
    assert below.val == tmp_path / "datasets" / "mine" / "mine_val.npy"
    assert by_hand.train.as_posix() == "some/folder/mine_train.npy"
    assert by_hand.val.as_posix() == "some/folder/babylm_val.npy"


def test_a_changed_file_is_named_by_its_size_or_its_hash(dataset):
    dataset.verify()
    whole = dataset.val.read_bytes()
    dataset.val.write_bytes(whole[:-2] + b"\0\0")
    dataset.check_sizes()
    with pytest.raises(InvalidData, match=r"mine_val\.npy.* sha256"):
        dataset.verify()
    dataset.val.write_bytes(whole[:-2])
    with pytest.raises(InvalidData, match=rf"mine_val\.npy.* {len(whole) - 2} bytes"):
        dataset.check_sizes()


def test_a_split_in_several_files_is_ready_when_all_are_there(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    dataset = prepare(f"file:{corpus}", tmp_path / "mine", name="mine", split=(0.8, 0.1, 0.1), shard_bytes=2000)
    facts = dataset.manifest()["splits"]["train"]
    assert [file["file"] for file in facts["files"]] == [f"mine_train_{n:05d}.npy" for n in range(len(facts["files"]))]
    assert sum(file["tokens"] for file in facts["files"]) == facts["tokens"] == count_train_tokens(dataset)
    assert dataset.missing() == []
    (dataset.directory / "mine_train_00002.npy").unlink()
    assert dataset.missing() == [dataset.directory / "mine_train_00002.npy"]
