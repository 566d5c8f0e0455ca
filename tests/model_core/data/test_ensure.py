"""Preparing a dataset: complete files or none, by one process at a time."""

import os
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from model_core.config import BpeTokenizer
from model_core.config_loader import parse_config
from model_core.data.ensure import ensure_dataset, prepare
from model_core.errors import DatasetNotReady, InvalidData
from model_core.storage.files import Layout, read_json, sha256_of

DOCUMENTS = [f"Story {n}. A {'big ' * (n % 7)}fox ran {n} miles and said: é, 漢 or {n * n}?" for n in range(250)]
BPE = BpeTokenizer(type="bpe", vocab_size=400)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def prepared(corpus, tmp_path):
    return prepare(f"file:{corpus}", tmp_path / "mine", name="mine", tokenizer=BPE, seed=3)


def documents_of(dataset, split):
    ids = np.load(dataset.split(split), mmap_mode="r", allow_pickle=False)
    tokenizer = dataset.tokenizer()
    ends = np.flatnonzero(ids == tokenizer.eot)
    assert ends[-1] == len(ids) - 1  # one after each document
    return [tokenizer.decode(part[part != tokenizer.eot].tolist()) for part in np.split(ids, ends[:-1] + 1)]


def config(tree):
    return parse_config({"data": tree}).config


def test_every_document_is_in_one_split_and_comes_back(prepared):
    splits = [documents_of(prepared, split) for split in ("train", "val", "test")]
    assert [len(documents) for documents in splits] == [225, 23, 2]  # 90 + 90 + 45, 9 + 9 + 5, 1 + 1 + 0
    assert sorted(chain(*splits)) == sorted(DOCUMENTS)


def test_the_manifest_matches_the_files(prepared):
    manifest = prepared.manifest()
    for split, facts in manifest["splits"].items():
        path, ids = prepared.split(split), np.load(prepared.split(split))
        assert (facts["file"], facts["size_bytes"], facts["sha256"]) == (
            path.name, path.stat().st_size, sha256_of(path),
        )  # fmt: skip
        assert (facts["tokens"], facts["dtype"], str(ids.dtype)) == (len(ids), "uint16", "uint16")
        assert facts["text_bytes"] == sum(len(text.encode()) for text in documents_of(prepared, split))
    tokenizer = prepared.tokenizer()
    assert manifest["tokenizer"] == {
        "kind": "bpe", "n_vocab": tokenizer.n_vocab, "sha256": tokenizer.sha256, "file": "tokenizer.json",
        "asked": "bpe:400",
    }  # fmt: skip
    assert (manifest["source"], manifest["seed"], manifest["split"]) == ("file:corpus.txt", 3, [0.9, 0.09, 0.01])
    assert manifest["examples"]["count"] == prepared.example_count == 2


def test_equal_recipes_give_equal_bytes(corpus, prepared, tmp_path):
    again = prepare(f"file:{corpus}", tmp_path / "again", name="mine", tokenizer=BPE, seed=3)
    files = sorted(path.name for path in prepared.directory.iterdir())
    assert files == sorted(path.name for path in again.directory.iterdir())
    differing = [f for f in files if (prepared.directory / f).read_bytes() != (again.directory / f).read_bytes()]
    assert differing == [".hashes.json", "manifest.json"]  # times and inodes
    without_time = [{**d.manifest(), "created_at": None} for d in (prepared, again)]
    assert without_time[0] == without_time[1]


def test_the_tokenizer_never_sees_what_is_held_out(corpus, tmp_path):
    kept = prepare(f"file:{corpus}", tmp_path / "kept", name="mine", tokenizer=BPE)
    held_out = documents_of(kept, "val")[0]
    corpus.write_text("\n\n".join(DOCUMENTS).replace(held_out, "zzzz " * 500), encoding="utf-8")
    changed = prepare(f"file:{corpus}", tmp_path / "changed", name="mine", tokenizer=BPE)
    assert changed.tokenizer().sha256 == kept.tokenizer().sha256


def test_a_prepared_dataset_is_left_as_it_is_and_another_recipe_is_refused(corpus, prepared):
    before = prepared.train.stat().st_mtime_ns
    source = f"file:{corpus}"
    assert prepare(source, prepared.directory, name="mine", tokenizer=BPE, seed=3).train.stat().st_mtime_ns == before
    with pytest.raises(InvalidData, match=r"tokenizer.* 'bpe:400'.* 'gpt2'"):
        prepare(source, prepared.directory, name="mine", seed=3)
    with pytest.raises(InvalidData, match=r"seed.* 3.* 4"):
        prepare(source, prepared.directory, name="mine", tokenizer=BPE, seed=4)
    corpus.write_text("Other text.\n\nAltogether.")
    with pytest.raises(InvalidData, match="revision"):
        prepare(source, prepared.directory, name="mine", tokenizer=BPE, seed=3)


def test_a_broken_preparation_leaves_nothing_that_looks_ready(corpus, tmp_path):
    def emit(event, **fields):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(f"file:{corpus}", tmp_path / "mine", name="mine", emit=emit)
    assert [path.name for path in (tmp_path / "mine").glob("[!.]*")] == []
    assert prepare(f"file:{corpus}", tmp_path / "mine", name="mine").missing() == []


def test_files_of_the_user_are_never_overwritten(corpus, tmp_path):
    own = tmp_path / "mine" / "mine_train.npy"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(InvalidData, match=r"mine_train\.npy"):
        prepare(f"file:{corpus}", own.parent, name="mine")
    assert own.read_bytes() == b"mine"
    for split in ("val", "test"):
        own.with_name(f"mine_{split}.npy").write_bytes(b"mine")
    with pytest.raises(InvalidData, match="is not of this dataset"):
        prepare(f"file:{corpus}", own.parent, name="mine")


def test_a_source_too_small_for_its_split_is_refused(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("One.\n\nTwo.")
    with pytest.raises(InvalidData, match=r"2 documents.* val"):
        prepare(f"file:{path}", tmp_path / "small", name="small")
    assert list((tmp_path / "small").glob("[!.]*")) == []


def test_two_that_want_it_share_one_preparation(corpus, tmp_path):
    told, ready = [], []

    def want():
        emit = lambda event, **fields: told.append((event, fields.get("tokenized")))  # noqa: E731
        ready.append(prepare(f"file:{corpus}", tmp_path / "mine", name="mine", emit=emit))

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [dataset.missing() for dataset in ready] == [[], []]
    assert sorted(tokenized for event, tokenized in told if event == "prepared") == [0, 250]


def test_a_configuration_prepares_what_it_names_below_a_data_root_and_by_hand(corpus, tmp_path):
    tree = {"source": f"file:{corpus}", "data_dir": str(tmp_path / "by_hand"), "train_file": "mine_train.npy"}
    below = ensure_dataset(config(tree), Layout.under(tmp_path / "root"))
    by_hand = ensure_dataset(config(tree), Layout.of(config(tree)))
    assert below.train == tmp_path / "root" / "datasets" / "mine" / "mine_train.npy"
    assert by_hand.val == tmp_path / "by_hand" / "babylm_val.npy"
    assert below.train.read_bytes() == by_hand.train.read_bytes()
    assert by_hand.manifest()["splits"]["val"]["file"] == "babylm_val.npy"


def test_a_missing_dataset_names_its_path_and_the_command_that_makes_it(tmp_path):
    tree = {"dataset": "stories", "tokenizer": {"type": "bpe", "vocab_size": 300}}
    with pytest.raises(DatasetNotReady) as raised:
        ensure_dataset(config(tree), Layout.under(tmp_path))
    command = f"--source stories --name stories --data-root {tmp_path} --tokenizer bpe:300"
    assert f"{tmp_path / 'datasets' / 'stories' / 'stories_train.npy'}; make it with: python -m" in str(raised.value)
    assert command in str(raised.value)


def test_a_configuration_with_another_tokenizer_is_refused(prepared):
    tree = {"data_dir": str(prepared.directory), "dataset": "mine"}
    with pytest.raises(InvalidData, match=r"tokenizer.* 'bpe:400'.* 'gpt2'"):
        ensure_dataset(config(tree), Layout.of(config(tree)))
    asked = {**tree, "tokenizer": {"type": "bpe", "vocab_size": 400}}
    assert ensure_dataset(config(asked), Layout.of(config(asked))) == prepared


def command(*arguments, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "HEADCOUNT_DATA"}
    return subprocess.run(
        [sys.executable, "-m", "model_core.data.prepare", *arguments],
        cwd=cwd, env={**environment, "PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_prepares_beside_the_working_directory(corpus, tmp_path):
    done = command("--source", "file:corpus.txt", "--tokenizer", "bpe:300", "--split", "0.8,0.1,0.1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: 200 documents" in done.stdout
    assert read_json(tmp_path / "corpus_data" / "manifest.json")["tokenizer"]["n_vocab"] == 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "file:nowhere.txt"], "nowhere.txt"),
        (["--source", "elsewhere"], "'elsewhere' is not a source"),
        (["--source", "stories", "--split", "0.5,0.2,0.2"], "sum to 0.9"),
        (["--source", "stories", "--split", "0.5"], "'0.5' is not three shares"),
        (["--source", "stories", "--tokenizer", "bpe:12"], "at least 257"),
        (["--source", "stories", "--tokenizer", "word"], "'word' is neither gpt2 nor bpe:SIZE"),
        (["--source", "stories", "--name", "../x"], "../x"),
        ([], "--source"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, signals, arguments, said):
    from model_core.data.prepare import main

    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
