"""A run goes on with the data that it was trained on, and with no other: by hand and as a job."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_core.storage.data_identity import HASHES, identify
from model_core.storage.dataset import Dataset, load_tokenizer, save_tokenizer
from model_core.storage.events import read_events
from model_core.storage.files import read_json, sha256_of, write_json
from model_core.tokenizer import train_bpe
from tests.field.training import run_of, train, warnings_of, write_config, write_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a run of four steps."""
    root = tmp_path_factory.mktemp("trained")
    write_config(root)
    write_text(root, 200)
    assert train(root) == 0
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """The same, copied with all times: the inodes differ."""
    return Path(shutil.copytree(trained, tmp_path / "data"))


def dataset_in(root: Path) -> Dataset:
    return Dataset.named("text", root / "datasets" / "text")


def edit(file: Path) -> None:
    """Change one token in place: inode and size stay."""
    with file.open("r+b") as opened:
        opened.seek(-2, os.SEEK_END)
        token = opened.read(2)
        opened.seek(-2, os.SEEK_END)
        opened.write(bytes([token[0] ^ 1, token[1]]))


def edit_and_set_time_back(file: Path) -> None:
    stat = file.stat()
    edit(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace_by_copy(file: Path) -> None:
    shutil.copyfile(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


def replace_by_shorter(file: Path) -> None:
    np.save(file, np.load(file)[:-5])


def use_another_tokenizer(root: Path) -> None:
    save_tokenizer(dataset_in(root).directory / "tokenizer.json", train_bpe(["other words than before"] * 9, 300))


def prepare_again(root: Path) -> None:
    shutil.rmtree(dataset_in(root).directory)


def prepare_other_text(root: Path) -> None:
    shutil.rmtree(dataset_in(root).directory)
    write_text(root, 200, seed=1)


def prepare_another_dataset_under_its_name(root: Path) -> None:
    prepare_other_text(root)
    assert train(root, "--run", "other") == 0


def damage_the_record(root: Path) -> None:
    (dataset_in(root).directory / HASHES).write_text("{")


def leave_token_files_alone(root: Path) -> None:
    for file in dataset_in(root).directory.glob("*.json"):
        file.unlink()


GOES_ON: dict[str, Callable[[Path], object]] = {
    "the data root was copied": lambda root: None,
    "a file was copied over itself": lambda root: replace_by_copy(dataset_in(root).train),
    "a file was touched": lambda root: os.utime(dataset_in(root).train),
    "the record of hashes was deleted": lambda root: (dataset_in(root).directory / HASHES).unlink(),
    "the record of hashes is damaged": damage_the_record,
    "the dataset was deleted, and is prepared again": prepare_again,
}
IS_REFUSED: dict[str, Callable[[Path], object]] = {
    "one training token was changed": lambda root: edit(dataset_in(root).train),
    "and its time set back": lambda root: edit_and_set_time_back(dataset_in(root).train),
    "one validation token was changed": lambda root: edit(dataset_in(root).val),
    "one test token was changed": lambda root: edit(dataset_in(root).test),
    "the file is shorter": lambda root: replace_by_shorter(dataset_in(root).train),
    "train and val were exchanged": lambda root: shutil.copyfile(dataset_in(root).val, dataset_in(root).train),
    "the tokenizer is another": use_another_tokenizer,
    "the text changed, and the dataset was deleted": prepare_other_text,
    "another dataset was prepared under its name": prepare_another_dataset_under_its_name,
    "the manifest is gone, so the tokenizer would be GPT-2's": leave_token_files_alone,
}


@pytest.mark.parametrize("what", GOES_ON)
def test_a_run_goes_on_with_equal_data(root: Path, what: str) -> None:
    GOES_ON[what](root)
    assert (train(root, "--resume"), warnings_of(root)) == (0, [])
    assert run_of(root).full_states()[0].data_sha256 == identify(dataset_in(root)).sha256


@pytest.mark.parametrize("what", IS_REFUSED)
def test_a_run_does_not_go_on_with_other_data(root: Path, what: str, capsys: Any) -> None:
    trained_on = run_of(root).full_states()[0].data_sha256
    IS_REFUSED[what](root)
    assert train(root, "--resume") == 2
    error = run_of(root).outcome()["error"]
    assert error["code"] == "data_changed"
    found = identify(dataset_in(root)).sha256
    assert trained_on != found
    said = capsys.readouterr().err
    assert all(word in said for word in [trained_on, found, "checkpoint.load_checkpoint"])


def test_the_identity_is_in_the_manifest_the_start_event_and_every_full_state(trained: Path) -> None:
    run, identity = run_of(trained), identify(dataset_in(trained)).sha256
    states = [torch.load(run.path / info.file, weights_only=True) for info in run.full_states()]
    assert [state["data_sha256"] for state in states] == [identity] * 3
    (start,) = [event for event in read_events(run.events) if event["type"] == "start"]
    assert dataset_in(trained).manifest()["data_sha256"] == start["data_sha256"] == identity


def forget_the_data(root: Path) -> None:
    """Make every full state one of an earlier version."""
    run = run_of(root)
    for info in run.full_states():
        file = run.path / info.file
        state = torch.load(file, weights_only=True)
        del state["data_sha256"]
        torch.save(state, file)
        sidecar = read_json(file.with_suffix(".json"))
        del sidecar["data_sha256"]
        write_json(file.with_suffix(".json"), {**sidecar, "sha256": sha256_of(file), "replaces": None})


def test_a_state_of_an_earlier_version_goes_on_with_a_warning(root: Path) -> None:
    forget_the_data(root)
    manifest = read_json(dataset_in(root).directory / "manifest.json")
    del manifest["data_sha256"]
    write_json(dataset_in(root).directory / "manifest.json", manifest)
    assert (train(root, "--resume"), warnings_of(root)) == (0, ["data_unknown"])
    edit(dataset_in(root).train)  # the state that was saved since names its data
    assert train(root, "--resume") == 2


def test_a_new_run_from_the_checkpoint_takes_the_other_data(root: Path) -> None:
    edit(dataset_in(root).train)
    write_config(root, training={"max_steps": 6}, checkpoint={"load_checkpoint": "tiny/model_00002.pt"})
    assert (train(root, "--run", "next"), warnings_of(root, "next")) == (0, ["data_edited", "data_changed"])
    state = torch.load(run_of(root, "next").path / "model_latest.pt", weights_only=True)
    assert (state["step"], state["position"]) == (6, 4 * 4)  # four steps of four rows, from the first one


def test_a_job_that_notices_it_itself_fails_with_that_error(root: Path) -> None:
    as_job = ["--run", "job", "--job-id", "job_" + "0" * 32]
    assert train(root, *as_job) == 0
    edit(dataset_in(root).val)
    assert train(root, *as_job) == 2
    outcome = run_of(root, "job").outcome()
    assert (outcome["attempt"], outcome["error"]["code"]) == (2, "data_changed")
    assert "job/model_latest.pt" in outcome["error"]["hint"]


def test_shards_are_noticed_one_by_one(root: Path) -> None:
    dataset = dataset_in(root)
    tokens = np.load(dataset.train)
    for number, part in enumerate(np.split(tokens, [len(tokens) // 2])):
        np.save(dataset.train.with_name(f"text_train_{number:05d}.npy"), part)
    dataset.train.unlink()
    (dataset.directory / "manifest.json").unlink()
    write_config(root, model={"vocab_size": 50304}, data={"tokenizer": "gpt2", "source": None})
    assert train(root, "--run", "shards") == 0
    assert train(root, "--run", "shards", "--resume") == 0
    edit(dataset.train.with_name("text_train_00001.npy"))
    assert train(root, "--run", "shards", "--resume") == 2


def test_a_tokenizer_of_the_same_bytes_is_the_same(root: Path) -> None:
    file = dataset_in(root).directory / "tokenizer.json"
    save_tokenizer(file, load_tokenizer(file))
    assert train(root, "--resume") == 0
