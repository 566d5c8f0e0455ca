"""A dataset on disk: token files of three splits, test examples, a tokenizer and a manifest.

A folder that has only token files is a dataset whose tokens are GPT-2's. A long split is stored in several files,
`x_train_00000.npy` and so on. The training tokens are written last, so a dataset that has all token files is complete.
An index stores the byte range of each test example, so that one can be read without the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.config import ExperimentConfig
from model_core.errors import DatasetNotReady, DiskFull, ExampleNotFound, InvalidData
from model_core.storage.files import Layout, atomic_write, portable, read_json, sha256_of, write_json
from model_core.tokenizer import Tokenizer, gpt2_tokenizer

SPLITS = ("train", "val", "test")
TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"
EXAMPLES, EXAMPLE_INDEX = "test_examples.json", "test_examples_index.npy"
READ_AS = {
    "line": "one document per line",
    "paragraph": "documents between blank lines",
    "marker": "documents between lines of <|endoftext|>",
    "file": "one document per file",
    "rows": "one document per row",
    "pieces": "pieces of a few long documents",
    "mixed": "files that are read in different ways",
}  # descriptions of the manifest's `reading.read_as`; a source that is not read from files has its own name there
LOCK = ".lock"  # held by the process that writes the directory

_SHOWN_CHARACTERS = 80
_CACHED_INDEX = ".test_examples_index.npy"  # its first row is size and mtime of the indexed file
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)
_REMEDY = "delete the dataset's folder and prepare it again"

_ByteRanges = NDArray[np.uint64]


@dataclass(frozen=True)
class Example:
    """One document of the test split.

    Attributes:
        id: Number of the example, from 0.
        text: Text of the document.
        tokens: Token ids, without the end-of-text token.
    """

    id: int
    text: str
    tokens: tuple[int, ...]


class ExampleFile:
    """The file of a dataset's test examples.

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
            InvalidData: The file is not a JSON array of objects.
        """
        return len(self._byte_ranges())

    def read(self, number: int) -> Example:
        """Read one example.

        Args:
            number: Number of an existing example, from 0.

        Returns:
            The example.

        Raises:
            InvalidData: The entry is not an example.
        """
        start, end = (int(offset) for offset in self._byte_ranges()[number])
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start)
        try:
            record = json.loads(text)
            return Example(number, record["text"], tuple(record["tokens"]))
        except (ValueError, KeyError, TypeError):
            detail = f"example {number}, at byte {start}, is no object with text and tokens"
            raise InvalidData(f"{self._path}: {detail}; prepare the dataset again") from None

    def _byte_ranges(self) -> _ByteRanges:
        """First byte of every example, and the byte after its last, (examples, 2)."""
        prepared, cached = self._path.with_name(EXAMPLE_INDEX), self._path.with_name(_CACHED_INDEX)
        if prepared.is_file():
            return _load_index(prepared)
        stat = self._path.stat()
        signature = (stat.st_size, stat.st_mtime_ns)
        if cached.is_file():
            rows = _load_index(cached)  # (examples + 1, 2)
            if len(rows) and tuple(rows[0].tolist()) == signature:
                return rows[1:]  # (examples, 2)
        rows = np.array([signature, *_find_objects(self._path)], np.uint64)  # (examples + 1, 2)
        with contextlib.suppress(OSError, DiskFull), atomic_write(cached) as file:
            np.save(file, rows)  # in a read-only directory every call scans the file
        return rows[1:]  # (examples, 2)


@dataclass(frozen=True)
class Dataset:
    """Paths of a dataset, whose token files are in one directory; each method reads what it needs.

    Attributes:
        name: Name of the dataset.
        train: Token file of the training split.
        val: Token file of the validation split.
        test: Token file of the test split.
    """

    name: str
    train: Path
    val: Path
    test: Path

    @classmethod
    def named(cls, name: str, directory: Path) -> Dataset:
        """Build a dataset whose token files start with its name.

        Args:
            name: Name of the dataset.
            directory: Directory of its files.

        Returns:
            The dataset; its files need not exist.
        """
        return cls(name, *(directory / f"{name}_{split}.npy" for split in SPLITS))

    @property
    def directory(self) -> Path:
        """The directory of all its files."""
        return self.train.parent

    def split(self, name: str) -> Path:
        """Return the token file of a split; for a split in several files, the path that `shard_path` numbers.

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
        if all(path.is_file() for path in (self.train, self.val, self.test)):
            return []  # the manifest is needed only if a split may be stored in several files
        return [path for split in SPLITS for path in self._files(split) if not path.is_file()]

    def manifest(self) -> dict[str, Any] | None:
        """Read the manifest.

        Returns:
            The manifest; None if there is none, or if it belongs to another dataset in the same directory.

        Raises:
            InvalidData: The file is not a manifest.
        """
        file = self.directory / MANIFEST
        if not file.is_file():
            return None
        try:
            manifest: dict[str, Any] = read_json(file)
            train_file, _ = manifest["splits"]["train"]["file"], manifest["tokenizer"]["file"]
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidData(f"{file} {_why_unreadable(error)}: it was changed or damaged; {_REMEDY}") from None
        return manifest if train_file == self.train.name else None

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer with which the dataset was encoded.

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
        entry = manifest["splits"].get(split) if manifest else None
        return entry["text_bytes"] / entry["tokens"] if entry and entry["tokens"] else None

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest, without reading the files.

        Raises:
            InvalidData: A file is missing or has another size.
        """
        for path, entry in self._recorded_files():
            size = path.stat().st_size if path.is_file() else None
            if size != entry["size_bytes"]:
                has = "is missing" if size is None else f"has {size} bytes"
                raise InvalidData(f"{path} {has}, and {MANIFEST} records {entry['size_bytes']}; {_REMEDY}")

    def verify(self) -> None:
        """Compare the size and hash of every file with the manifest.

        Raises:
            InvalidData: A file differs.
        """
        self.check_sizes()
        for path, entry in self._recorded_files():
            if (found := sha256_of(path)) != entry["sha256"]:
                detail = f"has the sha256 {found}, and {MANIFEST} records {entry['sha256']}"
                raise InvalidData(f"{path} {detail}: it was changed or damaged; {_REMEDY}")

    @property
    def example_count(self) -> int:
        """Number of test examples; 0 without an examples file."""
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
            ExampleNotFound: The dataset has fewer examples.
            InvalidData: The examples file is damaged.
        """
        examples = ExampleFile(self.directory)
        if not examples.exists():
            raise DatasetNotReady(f"dataset {self.name!r} has no {EXAMPLES}; preparing the dataset makes it")
        count = examples.count()
        if not 0 <= number < count:
            raise ExampleNotFound(self.name, str(number), count)
        return examples.read(number)

    def _files(self, split: str) -> list[Path]:
        """Token files of a split: those in the manifest, or else those that exist."""
        manifest, path = self.manifest(), self.split(split)
        if manifest and "files" in manifest["splits"][split]:
            return [self.directory / entry["file"] for entry in manifest["splits"][split]["files"]]
        return token_files(path)

    def _recorded_files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every file whose size and hash the manifest records, with its entry; none without a manifest."""
        manifest = self.manifest()
        if manifest is not None:
            splits = [entry for split in SPLITS for entry in file_entries(manifest["splits"][split])]
            for entry in (*splits, manifest["examples"]):
                yield self.directory / entry["file"], entry


def describe_reading(reading: Mapping[str, Any] | None) -> Iterator[str]:
    """Describe for people how the source of a dataset was read.

    Args:
        reading: Entry `reading` of the manifest; None for datasets without one.

    Yields:
        Lines of text.
    """
    if not reading:
        return
    lengths = ", ".join(f"{key} {reading[key]:,}" for key in ("shortest", "median", "longest"))
    read_as = READ_AS.get(reading["read_as"], reading["read_as"])
    yield f"{reading['documents']:,} documents, read as {read_as}; {lengths} characters"
    for number, text in enumerate(reading["first"], 1):
        yield f"document {number}: {json.dumps(text[:_SHOWN_CHARACTERS], ensure_ascii=False)}"


def shard_path(path: Path, number: int) -> Path:
    """Return the path of one shard of a split that is stored in several files.

    Args:
        path: Path of the split, for example ``x_train.npy``.
        number: Number of the shard, from 0.

    Returns:
        The path, for example ``x_train_00001.npy``.
    """
    return path.with_name(f"{path.stem}_{number:05d}{path.suffix}")


def token_files(path: Path) -> list[Path]:
    """List the token files of a split in order.

    Args:
        path: Path of the split, for example ``x_train.npy``.

    Returns:
        The existing shards; the path itself if it exists or if there are no shards.
    """
    if path.is_file():
        return [path]
    return list(itertools.takewhile(Path.is_file, (shard_path(path, number) for number in itertools.count()))) or [path]


def file_entries(split: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a split's token files in a manifest.

    Args:
        split: Entry of the split; of a split in one file it is also the entry of that file.

    Returns:
        One entry for each file, in order.
    """
    files: list[dict[str, Any]] = split.get("files") or [dict(split)]
    return files


def save_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON, atomically.

    Args:
        path: File to create or replace.
        tokenizer: The tokenizer.
    """
    write_json(path, tokenizer.to_dict())


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer that `save_tokenizer` wrote.

    Args:
        path: The JSON file.

    Returns:
        The tokenizer.

    Raises:
        InvalidData: The file is not a tokenizer, or its vocabulary does not have the recorded hash.
    """
    try:
        return Tokenizer.from_dict(read_json(path))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidData(f"{path} {_why_unreadable(error)}: it was changed or damaged; {_REMEDY}") from None


def dataset_of(config: ExperimentConfig, layout: Layout) -> Dataset:
    """Return the dataset of a configuration, ready or not.

    Args:
        config: Configuration whose section `data` names the dataset.
        layout: Directories. Below a data root the files have the name of the dataset, otherwise those of the
            configuration.

    Returns:
        The dataset; its files need not exist.
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
        Bits per byte; None if the manifest does not record the size of the text.
    """
    bytes_per_token = dataset.bytes_per_token(split)
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token


def _load_index(path: Path) -> _ByteRanges:
    try:
        rows: _ByteRanges = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise InvalidData(f"{path} is no array of byte ranges: it was changed or damaged; {_REMEDY}") from None
    return rows


def _why_unreadable(error: Exception) -> str:
    """Why a file of JSON is not what it should be, in words for people."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg}, line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    return "is JSON of another kind"


def _find_objects(path: Path) -> Iterator[tuple[int, int]]:
    """Byte ranges of the objects of a JSON array, found without loading the file into memory."""
    depth = start = 0
    if not path.stat().st_size:
        raise InvalidData(f"{path} is empty; it should be a list of objects with id, text and tokens")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            raise InvalidData(f"{path} is no JSON array; it should be a list of objects with id, text and tokens")
        for match in _STRING_OR_BRACKET.finditer(data):
            lexeme = match[0]
            if lexeme in (b"[", b"{"):
                depth += 1
                start = match.start() if depth == 2 else start
            elif lexeme in (b"]", b"}"):
                depth -= 1
                if depth == 1:
                    yield start, match.end()
        if depth:
            raise InvalidData(f"{path} ends in the middle of its JSON array; was it cut off?")
