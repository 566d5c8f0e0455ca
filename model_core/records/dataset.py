"""A dataset on disk: three token files, test examples that are read one at a time, a tokenizer, a manifest.

A folder with token files alone, such as a user's own, works too: it has no manifest, and its tokens are GPT-2's.
Preparation moves the training tokens into place last, so a dataset whose token files are all there is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_core.config import ExperimentConfig
from model_core.errors import DatasetNotReady, ExampleNotFound
from model_core.records.files import Layout, portable, read_json
from model_core.tokenizer import Tokenizer, gpt2_tokenizer

SPLITS = ("train", "val", "test")
EXAMPLES, EXAMPLE_INDEX = "test_examples.json", "test_examples_index.npy"
TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"


@dataclass(frozen=True)
class Example:
    """One document of the test split.

    Attributes:
        id: Its number, from 0.
        text: The document.
        tokens: Its ids, without the end of text.
    """

    id: int
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """Where a dataset lies; nothing is read before it is asked for.

    Attributes:
        name: The dataset's name.
        train: Token file of the split, like `val` and `test`; all lie in one directory.
    """

    name: str
    train: Path
    val: Path
    test: Path

    @classmethod
    def named(cls, name: str, directory: Path) -> Dataset:
        """Files called after the dataset."""
        return cls(name, *(directory / f"{name}_{split}.npy" for split in SPLITS))

    @property
    def directory(self) -> Path:
        """The directory of all its files."""
        return self.train.parent

    def split(self, name: str) -> Path:
        """Token file of ``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def missing(self) -> list[Path]:
        """Token files that are not there; none when the dataset is ready."""
        return [path for path in (self.train, self.val, self.test) if not path.is_file()]

    def manifest(self) -> dict[str, Any] | None:
        """What preparation recorded; None for files that were not prepared here, or beside another dataset's."""
        file = self.directory / MANIFEST
        manifest: dict[str, Any] | None = read_json(file) if file.is_file() else None
        return manifest if manifest and manifest["splits"]["train"]["file"] == self.train.name else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its tokens."""
        manifest = self.manifest()
        return Tokenizer.read(self.directory / manifest["tokenizer"]["file"]) if manifest else gpt2_tokenizer()

    def bytes_per_token(self, split: str) -> float | None:
        """Bytes of text for each token of a split, end of text counted; None when nobody recorded it."""
        manifest = self.manifest()
        facts = manifest["splits"].get(split) if manifest else None
        return facts["text_bytes"] / facts["tokens"] if facts and facts["tokens"] else None

    @property
    def example_count(self) -> int:
        """Test examples there are; none when the folder has no examples file."""
        if not (self.directory / EXAMPLES).is_file():
            return 0
        places = self._places()
        return len(read_json(self.directory / EXAMPLES)) if places is None else len(places)

    def example(self, number: int) -> Example:
        """Read one test example; of a prepared dataset, without reading the others.

        Raises:
            DatasetNotReady: The dataset has no examples file.
            ExampleNotFound: It has fewer.
        """
        file = self.directory / EXAMPLES
        if not file.is_file():
            raise DatasetNotReady(f"dataset {self.name!r} has no {EXAMPLES}; preparing the dataset makes it")
        if not 0 <= number < self.example_count:
            raise ExampleNotFound(self.name, str(number), self.example_count)
        places = self._places()
        if places is None:
            record = read_json(file)[number]
        else:
            start, end = (int(offset) for offset in places[number])
            with file.open("rb") as examples:
                examples.seek(start)
                record = json.loads(examples.read(end - start))
        return Example(number, record["text"], tuple(record["tokens"]))

    def _places(self) -> np.ndarray[Any, Any] | None:
        """First byte of every example and the byte after its last, (examples, 2); None for a user's own file."""
        file = self.directory / EXAMPLE_INDEX
        places: np.ndarray[Any, Any] | None = np.load(file, mmap_mode="r") if file.is_file() else None
        return places


def dataset_of(config: ExperimentConfig, layout: Layout) -> Dataset:
    """The dataset that a configuration means, ready or not.

    Args:
        config: Its `data` section.
        layout: Below a data root files are called after the dataset; without one the configuration's names hold.
    """
    data = config.data
    directory = layout.dataset(data.dataset_name)
    if layout.data_dir is None or data.dataset is not None:
        return Dataset.named(data.dataset_name, directory)
    return Dataset(
        data.dataset_name, *(directory / portable(f) for f in (data.train_file, data.val_file, data.test_file))
    )
