"""A dataset on disk: token files of three splits, test examples, a tokenizer and a manifest.

A folder with only token files, such as a user's own, works too: its tokens count as GPT-2's. A long split continues in
further files, `x_train_00000.npy` and so on. The training tokens get their name last, so a dataset with all token files
is complete. An index gives the position of each test example, so that one is read without the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.config import ExperimentConfig
from model_core.errors import DatasetNotReady, DiskFull, ExampleNotFound, InvalidData
from model_core.storage.files import Layout, portable, read_json, replacing, sha256_of, write_json
from model_core.tokenizer import Tokenizer, gpt2_tokenizer

EXAMPLES, EXAMPLE_INDEX = "test_examples.json", "test_examples_index.npy"
_OWN_INDEX = ".test_examples_index.npy"  # its first row is size and time of the file that it belongs to
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)

Places = NDArray[np.uint64]


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


class ExampleFile:
    """The test examples of a dataset's directory.

    Args:
        directory: Directory of the dataset.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / EXAMPLES

    def exists(self) -> bool:
        """Return whether the directory has an examples file.

        Returns:
            True if the file exists.
        """
        return self._path.is_file()

    def count(self) -> int:
        """Count the examples.

        Returns:
            Number of examples.

        Raises:
            InvalidData: It is no JSON array of objects.
        """
        return len(self._places())

    def read(self, number: int) -> Example:
        """Read one example.

        Args:
            number: Number of an existing example, from 0.

        Returns:
            The example.

        Raises:
            InvalidData: What stands there is no example.
        """
        start, end = (int(place) for place in self._places()[number])
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            record = json.loads(text)
            return Example(number, record["text"], tuple(record["tokens"]))
        except (ValueError, KeyError, TypeError):
            detail = f"example {number}, at byte {start}, is no object with text and tokens"
            raise InvalidData(f"{self._path}: {detail}; prepare the dataset again") from None

    def _places(self) -> Places:
        """First byte of every example and the byte after its last, (examples, 2)."""
        prepared, own = self._path.with_name(EXAMPLE_INDEX), self._path.with_name(_OWN_INDEX)
        if prepared.is_file():
            return _load(prepared)
        facts = self._path.stat()
        signature = (facts.st_size, facts.st_mtime_ns)
        if own.is_file():
            rows = _load(own)  # (examples + 1, 2)
            if len(rows) and tuple(rows[0].tolist()) == signature:
                return rows[1:]  # (examples, 2)
        rows = np.array([signature, *_find_objects(self._path)], np.uint64)  # (examples + 1, 2)
        with contextlib.suppress(OSError, DiskFull), replacing(own) as file:
            np.save(file, rows)  # where nothing may be written, the next question takes as long
        return rows[1:]  # (examples, 2)


def _load(path: Path) -> Places:
    places: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return places


def _find_objects(path: Path) -> Iterator[tuple[int, int]]:
    """Where the objects of a JSON array stand, found without holding the file in memory."""
    depth = start = 0
    if not path.stat().st_size:
        raise InvalidData(f"{path} is empty; it should be a list of objects with id, text and tokens")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            raise InvalidData(f"{path} is no JSON array; it should be a list of objects with id, text and tokens")
        for match in _MARKS.finditer(data):
            mark = match[0]
            if mark in (b"[", b"{"):
                depth += 1
                start = match.start() if depth == 2 else start
            elif mark in (b"]", b"}"):
                depth -= 1
                if depth == 1:
                    yield start, match.end()
        if depth:
            raise InvalidData(f"{path} ends in the middle of its JSON array; was it cut off?")


SPLITS = ("train", "val", "test")
TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"
LOCK = ".lock"  # held by whoever writes the directory


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
        """Name the files of a dataset after it.

        Args:
            name: Name of the dataset.
            directory: Directory of its files.

        Returns:
            The dataset; nothing is read.
        """
        return cls(name, *(directory / f"{name}_{split}.npy" for split in SPLITS))

    @property
    def directory(self) -> Path:
        """The directory of all its files."""
        return self.train.parent

    def split(self, name: str) -> Path:
        """Return the token file of a split; a split in several files is named after it.

        Args:
            name: ``train``, ``val`` or ``test``.

        Returns:
            The path.
        """
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def missing(self) -> list[Path]:
        """List the token files that do not exist.

        Returns:
            Their paths; none if the dataset is ready.
        """
        alone = [path for path in (self.train, self.val, self.test) if not path.is_file()]
        if not alone:
            return []  # the manifest is read only where a split may lie in several files
        return [path for split in SPLITS for path in self._files(split) if not path.is_file()]

    def manifest(self) -> dict[str, Any] | None:
        """Read the manifest.

        Returns:
            The manifest; None for files that were not prepared here, or beside another dataset's manifest.

        Raises:
            InvalidData: The file is no manifest.
        """
        file = self.directory / MANIFEST
        if not file.is_file():
            return None
        try:
            manifest: dict[str, Any] = read_json(file)
            train_file, _ = manifest["splits"]["train"]["file"], manifest["tokenizer"]["file"]
        except (ValueError, LookupError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InvalidData(f"{file} cannot be read ({reason}): it was changed or damaged; {_REMEDY}") from None
        return manifest if train_file == self.train.name else None

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer of the tokens.

        Returns:
            The recorded tokenizer; GPT-2's without a manifest.
        """
        manifest = self.manifest()
        return load_tokenizer(self.directory / manifest["tokenizer"]["file"]) if manifest else gpt2_tokenizer()

    def bytes_per_token(self, split: str) -> float | None:
        """Return the bytes of text per token of a split, end-of-text tokens included.

        Args:
            split: Name of the split.

        Returns:
            The ratio; None if it was not recorded.
        """
        manifest = self.manifest()
        facts = manifest["splits"].get(split) if manifest else None
        return facts["text_bytes"] / facts["tokens"] if facts and facts["tokens"] else None

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest's, which takes no reading.

        Raises:
            InvalidData: One has another; it is named.
        """
        for path, facts in self._recorded():
            size = path.stat().st_size if path.is_file() else None
            if size != facts["size_bytes"]:
                has = "is missing" if size is None else f"has {size} bytes"
                raise InvalidData(f"{path} {has}, and {MANIFEST} says {facts['size_bytes']}; {_REMEDY}")

    def verify(self) -> None:
        """Compare every file with the manifest, byte for byte by its hash.

        Raises:
            InvalidData: One differs; it is named.
        """
        self.check_sizes()
        for path, facts in self._recorded():
            if (found := sha256_of(path)) != facts["sha256"]:
                detail = f"has the sha256 {found}, and {MANIFEST} says {facts['sha256']}"
                raise InvalidData(f"{path} {detail}: it was changed or damaged; {_REMEDY}")

    @property
    def example_count(self) -> int:
        """Test examples there are; none when the folder has no examples file."""
        examples = ExampleFile(self.directory)
        return examples.count() if examples.exists() else 0

    def example(self, number: int) -> Example:
        """Read one test example without reading the others.

        Args:
            number: Number of the example, from 0.

        Returns:
            The example.

        Raises:
            DatasetNotReady: The dataset has no examples file.
            ExampleNotFound: It has fewer.
            InvalidData: The file is not what it should be.
        """
        examples = ExampleFile(self.directory)
        if not examples.exists():
            raise DatasetNotReady(f"dataset {self.name!r} has no {EXAMPLES}; preparing the dataset makes it")
        count = examples.count()
        if not 0 <= number < count:
            raise ExampleNotFound(self.name, str(number), count)
        return examples.read(number)

    def _files(self, split: str) -> list[Path]:
        """Token files of a split, as the manifest has them, or as they lie there."""
        manifest, path = self.manifest(), self.split(split)
        if manifest and "files" in manifest["splits"][split]:
            return [self.directory / facts["file"] for facts in manifest["splits"][split]["files"]]
        return token_files(path)

    def _recorded(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every file of which the manifest knows size and hash; none without a manifest."""
        manifest = self.manifest()
        if manifest is not None:
            splits = [facts for split in SPLITS for facts in _each_file(manifest["splits"][split])]
            for facts in (*splits, manifest["examples"]):
                yield self.directory / facts["file"], facts


_REMEDY = "delete the dataset's folder and prepare it again"


def _each_file(facts: dict[str, Any]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = facts.get("files", [facts])
    return files


def shard_of(path: Path, number: int) -> Path:
    """Return the path of one part of a split that is stored in several files.

    Args:
        path: Path of the split, for example ``x_train.npy``.
        number: Number of the part, from 0.

    Returns:
        The path, for example ``x_train_00001.npy``.
    """
    return path.with_name(f"{path.stem}_{number:05d}{path.suffix}")


def token_files(path: Path) -> list[Path]:
    """The files of a row of token ids, in order: one, or those that it was cut into.

    Args:
        path: What they are called after.

    Returns:
        The path itself when there is nothing else.
    """
    if path.is_file():
        return [path]
    return list(itertools.takewhile(Path.is_file, (shard_of(path, number) for number in itertools.count()))) or [path]


def save_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON, atomically.

    Args:
        path: File to create or replace.
        tokenizer: The tokenizer to record.
    """
    write_json(path, tokenizer.to_dict())


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer that `save_tokenizer` wrote.

    Args:
        path: The JSON file.

    Returns:
        The tokenizer.

    Raises:
        InvalidData: Its tokens do not have the recorded hash.
    """
    return Tokenizer.from_dict(read_json(path))


def dataset_of(config: ExperimentConfig, layout: Layout) -> Dataset:
    """Return the dataset of a configuration, ready or not.

    Args:
        config: Its `data` section.
        layout: Below a data root files are called after the dataset; without one the configuration's names hold.

    Returns:
        The dataset; nothing is read.
    """
    data = config.data
    directory = layout.dataset(data.dataset_name)
    if layout.data_dir is None or data.dataset is not None:
        return Dataset.named(data.dataset_name, directory)
    return Dataset(
        data.dataset_name, *(directory / portable(f) for f in (data.train_file, data.val_file, data.test_file))
    )


def bits_per_byte(loss: float, dataset: Dataset, split: str) -> float | None:
    """Convert a loss to bits per byte of text, which is comparable between tokenizers.

    Args:
        loss: Cross-entropy in nats per token.
        dataset: Dataset of the loss.
        split: Split of the loss.

    Returns:
        None when the dataset's manifest does not say how many bytes its text has.
    """
    bytes_per_token = dataset.bytes_per_token(split)
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
