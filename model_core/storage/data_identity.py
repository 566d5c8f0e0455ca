"""The identity of a dataset's content, `data_sha256`: a hash over the hashes of its token files and of its tokenizer.

Hashing reads every file. So a record beside the files keeps the hash of each with its size, times and inode, and only
a file that differs in one of these is read again: a file that was copied or touched has the hash that it had.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_core.errors import DataChanged, DiskFull, InvalidData
from model_core.storage.checkpoints import CheckpointDirectory
from model_core.storage.dataset import SPLITS, Dataset, file_entries, token_files
from model_core.storage.files import read_json, write_json
from model_core.tokenizer import gpt2_tokenizer

HASHES = ".hashes.json"  # the record, in the directory of the token files
_BLOCK_BYTES = 1 << 22
_SIGNATURE = ("size_bytes", "mtime_ns", "ctime_ns", "inode")  # ctime too: anybody can set mtime back

OnBlock = Callable[[int, int], None]  # bytes read so far, and bytes to read


@dataclass(frozen=True)
class DataIdentity:
    """What a dataset contains.

    Attributes:
        sha256: Equal for equal token files and tokenizer, whatever their names.
        edited: Token files whose hash is not the one in the manifest.
    """

    sha256: str
    edited: tuple[str, ...] = ()


def identify(dataset: Dataset, on_block: OnBlock | None = None) -> DataIdentity:
    """Compute the identity of a dataset from its files; those that the record has are not read.

    Args:
        dataset: Complete dataset.
        on_block: Called after each block that is read; an error from it ends the work.

    Returns:
        The identity.

    Raises:
        InvalidData: The manifest or the tokenizer cannot be read.
    """
    files = {split: token_files(dataset.split(split)) for split in SPLITS}
    every = [path for paths in files.values() for path in paths]
    record = _read_record(dataset.directory)
    hashes = {path.name: _recorded_hash(path, record) for path in every}
    unknown = [path for path in every if hashes[path.name] is None]
    if unknown:
        found = _hash_files(unknown, on_block)
        hashes |= {name: entry["sha256"] for name, entry in found.items()}
        _write_record(dataset.directory, record | found)
    by_split = {split: [str(hashes[path.name]) for path in paths] for split, paths in files.items()}
    return DataIdentity(_combine(by_split, _tokenizer_sha256(dataset)), _edited(dataset, hashes))


def identify_quickly(dataset: Dataset, most_bytes: int) -> DataIdentity | None:
    """Compute the identity of a dataset, unless too much would have to be read.

    Args:
        dataset: Complete dataset.
        most_bytes: Largest number of bytes to read.

    Returns:
        The identity; None if the record lacks files of more bytes.

    Raises:
        InvalidData: The manifest or the tokenizer cannot be read.
    """
    record = _read_record(dataset.directory)
    files = [path for split in SPLITS for path in token_files(dataset.split(split))]
    unread = sum(path.stat().st_size for path in files if _recorded_hash(path, record) is None)
    return identify(dataset) if unread <= most_bytes else None


def record_hashes(dataset: Dataset) -> None:
    """Record the hashes in the manifest of a dataset that was made just now, so that no training reads the files.

    Args:
        dataset: Complete dataset; its directory is locked.
    """
    manifest = dataset.manifest()
    if manifest is not None:
        entries = [entry for split in SPLITS for entry in file_entries(manifest["splits"][split])]
        made = {entry["file"]: entry["sha256"] for entry in entries}
        found = {name: {**_signature((dataset.directory / name).stat()), "sha256": made[name]} for name in made}
        _write_record(dataset.directory, _read_record(dataset.directory) | found)


def manifest_data_sha256(splits: Mapping[str, Mapping[str, Any]], tokenizer_sha256: str) -> str:
    """Compute the identity of a dataset from the entries of its manifest.

    Args:
        splits: Entries of the splits, with the hash of each file.
        tokenizer_sha256: Hash of the tokenizer.

    Returns:
        The identity, hex.
    """
    by_split = {split: [str(entry["sha256"]) for entry in file_entries(splits[split])] for split in SPLITS}
    return _combine(by_split, tokenizer_sha256)


def refuse_changed_data(run: CheckpointDirectory, dataset: Dataset, found: str) -> None:
    """Refuse to continue a run with other data than it was trained on.

    Args:
        run: The run.
        dataset: Dataset of its configuration.
        found: Identity of the dataset.

    Raises:
        DataChanged: The newest full state names another identity. One of an earlier version names none.
    """
    for state in run.full_states()[:1]:
        if state.data_sha256 not in {None, found}:
            raise DataChanged(run.name, state.file, dataset.name, str(state.data_sha256), found)


def _combine(by_split: Mapping[str, Sequence[str]], tokenizer_sha256: str) -> str:
    lines = [f"{split} {sha256}" for split in SPLITS for sha256 in by_split[split]]
    return hashlib.sha256("\n".join([*lines, f"tokenizer {tokenizer_sha256}"]).encode()).hexdigest()


def _edited(dataset: Dataset, hashes: Mapping[str, str | None]) -> tuple[str, ...]:
    manifest = dataset.manifest() or {"splits": {}}
    entries = [entry for split in manifest["splits"].values() for entry in file_entries(split)]
    return tuple(entry["file"] for entry in entries if hashes.get(entry["file"], entry["sha256"]) != entry["sha256"])


def _tokenizer_sha256(dataset: Dataset) -> str:
    manifest = dataset.manifest()
    if manifest is None:
        return gpt2_tokenizer().sha256
    file = dataset.directory / manifest["tokenizer"]["file"]
    try:
        return str(read_json(file)["sha256"])  # loading the tokenizer compares its tokens with this hash
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidData(f"{file} cannot be read ({type(error).__name__}); prepare the dataset again") from None


def _hash_files(paths: Sequence[Path], on_block: OnBlock | None) -> dict[str, dict[str, Any]]:
    """Hash files, and describe each as it was when its hash was begun."""
    found: dict[str, dict[str, Any]] = {}
    done, of = 0, sum(path.stat().st_size for path in paths)
    for path in paths:
        with path.open("rb") as file:
            signature, digest = _signature(os.fstat(file.fileno())), hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                if on_block is not None:
                    on_block(done, of)
        found[path.name] = {**signature, "sha256": digest.hexdigest()}
    return found


def _signature(stat: os.stat_result) -> dict[str, int]:
    return dict(zip(_SIGNATURE, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino), strict=True))


def _recorded_hash(path: Path, record: Mapping[str, Any]) -> str | None:
    entry, signature = record.get(path.name), _signature(path.stat())
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in signature.items()):
        return None
    return entry.get("sha256")


def _read_record(directory: Path) -> dict[str, Any]:
    try:
        return dict(read_json(directory / HASHES)["files"])
    except (OSError, ValueError, LookupError, TypeError):  # missing, or damaged: the files are read again
        return {}


def _write_record(directory: Path, files: Mapping[str, Any]) -> None:
    present = {name: entry for name, entry in files.items() if (directory / name).is_file()}
    with contextlib.suppress(OSError, DiskFull):  # in a read-only directory every start reads the files
        write_json(directory / HASHES, {"schema_version": 1, "files": present})
