"""The model card describes the data that the manifest records."""

from pathlib import Path
from typing import Any

import pytest

from model_core.config import DataConfig
from model_core.hf.model_card import Provenance, find_provenance
from model_core.storage.dataset import Dataset
from model_core.storage.files import write_json

TRAINED_AT = "2026-05-01T10:00:00.000Z"
PAGE = "https://huggingface.co/datasets/roneneldan/TinyStories"
READ = {
    "source": "tinystories",
    "revision": "0123abc",
    "created_at": "2026-05-01T09:00:00.000Z",
    "origin": {"config": "default", "licence": "cdla-sharing-1.0"},
    "tokenizer": {"file": "tokenizer.json"},
    "splits": {"train": {"file": "tales_train.npy"}},
}
FROM_HUB = "roneneldan/TinyStories"


def told(directory: Path, asked: str | None, **manifest: Any) -> Provenance:
    """What is known of a dataset that has such a manifest, if any, and such a source in the run's configuration."""
    if manifest:
        write_json(directory / "manifest.json", manifest)
    return find_provenance(DataConfig(source=asked), Dataset.named("tales", directory), TRAINED_AT)


def test_a_manifest_reports_what_was_read_whatever_the_configuration_says(tmp_path: Path) -> None:
    expected = f"[{FROM_HUB}]({PAGE}), configuration `default`, at `0123abc`"
    assert told(tmp_path, None, **READ) == Provenance(expected, "cdla-sharing-1.0", FROM_HUB)


def test_where_the_page_named_no_licence_the_table_of_sources_does(tmp_path: Path) -> None:
    without = {**READ, "origin": {"config": None, "licence": None}}
    assert told(tmp_path, None, **without).licence == "CDLA-Sharing-1.0"


def test_a_dataset_younger_than_the_checkpoint_is_another_one(tmp_path: Path) -> None:
    younger = {**READ, "created_at": "2026-05-01T11:00:00.000Z"}
    assert told(tmp_path, None, **younger) == Provenance("not known here", "not known here")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, Provenance("not known here", "not known here")),
        ("file:uploads/secret-plans.txt", Provenance("`file`", "not known here")),
        ("stories", Provenance("`stories`", "MIT")),
        ("pydoc", Provenance("`pydoc`", "PSF-2.0")),
        ("tinystories", Provenance(f"[{FROM_HUB}]({PAGE})", "CDLA-Sharing-1.0", FROM_HUB)),
        (
            "hub:a/b:c",
            Provenance("[a/b](https://huggingface.co/datasets/a/b), configuration `c`", "see its page", "a/b"),
        ),
    ],
)
def test_without_a_manifest_the_configuration_tells(tmp_path: Path, source: str | None, expected: Provenance) -> None:
    assert told(tmp_path, source) == expected
