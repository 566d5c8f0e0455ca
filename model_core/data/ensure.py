"""Opens a dataset, and prepares it first if it is missing.

An existing dataset is compared with what is wanted. A file lock makes processes that want the same dataset share one
preparation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model_core.catalog import BUILTIN_SOURCES, HUB_DATASETS
from model_core.config import DataConfig, ExperimentConfig
from model_core.data.dataset_spec import (
    DEFAULT_SEED,
    DEFAULT_SHARD_BYTES,
    DEFAULT_SPLIT,
    DatasetSpec,
    Shares,
    TokenizerChoice,
    tokenizer_name,
    training_mismatch,
)
from model_core.data.pipeline import COMMIT_EVERY_S, Emit, PrepareContext, make_files
from model_core.data.sources.hub_access import Token
from model_core.entrypoint import ShutdownSignal
from model_core.errors import DatasetNotReady, InvalidData
from model_core.storage.dataset import LOCK, MANIFEST, SPLITS, Dataset, dataset_of, token_files
from model_core.storage.files import Layout, checked_name

_POLL_S, _TELL_S = 0.5, 10.0


def ensure_dataset(
    config: ExperimentConfig, layout: Layout, *, token: Token | None = None, emit: Emit | None = None,
    stop: ShutdownSignal | None = None,
) -> Dataset:  # fmt: skip
    """Open the dataset of a configuration, and prepare it first if it is missing.

    Args:
        config: Its section `data`.
        layout: Where datasets lie.
        token: See `prepare`.
        emit: See `prepare`.
        stop: See `prepare`.

    Returns:
        The complete dataset.

    Raises:
        Stopped: Somebody asked for it; what is done is kept.
        DatasetNotReady: It is missing and the configuration names no source; with the command that makes it.
        InvalidData: The source cannot be read, or the dataset that is there was made in another way or is damaged.
    """
    dataset, data = dataset_of(config, layout), config.data
    missing = dataset.missing()
    if missing and data.source is not None:
        return make(DatasetSpec.of(data), dataset, _context(emit, stop), token=token)
    if missing:
        raise DatasetNotReady(f"there is no {missing[0]}; make it with: {_command(dataset, data.tokenizer, layout)}")
    refuse_unlike(dataset, data)
    dataset.check_sizes()
    return dataset


def refuse_unlike(dataset: Dataset, data: DataConfig, *, read_files: bool = True) -> None:
    """Refuse a dataset that is there and is not the one that a training asks for.

    Args:
        dataset: Complete.
        data: What is asked for.
        read_files: See `training_mismatch`.

    Raises:
        InvalidData: It was made in another way, or its manifest cannot be read.
    """
    if (different := training_mismatch(dataset.manifest(), data, read_files=read_files)) is not None:
        raise _other(dataset, different)


def prepare(
    source: str, directory: Path, *, name: str, tokenizer: TokenizerChoice = "gpt2", split: Shares = DEFAULT_SPLIT,
    revision: str | None = None, text_column: str = "text", seed: int = DEFAULT_SEED, dedupe: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES, token: Token | None = None, emit: Emit | None = None,
    stop: ShutdownSignal | None = None, threads: int | None = None, commit_every_s: float = COMMIT_EVERY_S,
) -> Dataset:  # fmt: skip
    """Prepare a dataset. An existing one that was made in the same way is verified and kept.

    Args:
        source: ``stories``, ``file:PATH`` or another that `open_source` knows.
        directory: Where its files go.
        name: What they are called after.
        tokenizer: ``gpt2``, or a BPE to be trained on the training split.
        split: Shares of training, validation and test documents.
        revision: Which state of the source, where it has several.
        text_column: Which column of a source with columns is the text.
        seed: Of the split, and of generated text.
        dedupe: Drop documents whose text was there before.
        shard_bytes: Of token ids in one file; what is longer goes on in another.
        token: For sources that not everybody may read.
        emit: Told ``progress``, ``resumed`` and ``prepared``, as events are.
        stop: Asked between documents.
        threads: How many tokenize; None for one more than there are cores. The files do not depend on it.
        commit_every_s: How much work a kill may cost.

    Returns:
        The complete dataset.

    Raises:
        Stopped: Somebody asked for it; the same call goes on from there.
        DiskFull: Likewise.
        InvalidConfig: There is no such source.
        InvalidData: The source cannot be read, or the dataset that is there was made in another way or is damaged.
    """
    dataset = Dataset.named(checked_name("dataset", name), directory)
    spec = DatasetSpec(name, source, tokenizer, split, revision, text_column, seed, dedupe, shard_bytes)
    return make(spec, dataset, _context(emit, stop, threads, commit_every_s), token=token)


def make(spec: DatasetSpec, dataset: Dataset, context: PrepareContext, *, token: Token | None = None) -> Dataset:
    """Prepare the dataset of a spec; see `prepare`.

    Args:
        spec: What the dataset is made from.
        dataset: Files of the dataset.
        context: Callbacks and options of the preparation.
        token: Access token for sources with restricted access.

    Returns:
        The complete dataset.

    Raises:
        ModelCoreError: As `prepare`.
    """
    if not dataset.missing():
        _refuse_to_overwrite(dataset)
    tokenized = _make_missing(spec, dataset, context, token) if dataset.missing() else 0
    manifest = dataset.manifest()
    if manifest is not None:
        for different in spec.differences(manifest):
            raise _other(dataset, different)
    if not tokenized:
        dataset.verify()
    counted = (manifest or {"splits": {}})["splits"].values()
    facts = {key: sum(counts[key] for counts in counted) for key in ("documents", "tokens")}
    context.emit("prepared", dataset=dataset.name, **facts, tokenized=tokenized)
    return dataset


def _make_missing(spec: DatasetSpec, dataset: Dataset, context: PrepareContext, token: Token | None) -> int:
    """Make the files, unless somebody else does meanwhile; returns how many documents were tokenized here."""
    source = spec.open_source(token)
    for advice in source.advice:
        context.emit("warning", code=advice.code, detail=advice.detail)
    dataset.directory.mkdir(parents=True, exist_ok=True)
    with _alone(dataset.directory, context):
        if not dataset.missing():
            return 0
        _refuse_to_overwrite(dataset)
        return make_files(spec, source, dataset, context)


@contextmanager
def _alone(directory: Path, context: PrepareContext) -> Iterator[None]:
    """Hold the directory; whoever waits says so, and the kernel frees the lock of a killed process."""
    lock, tell_at = FileLock(directory / LOCK), time.monotonic() + _POLL_S
    while not lock.is_locked:
        context.stop.check()
        try:
            lock.acquire(timeout=_POLL_S)
        except Timeout:
            if time.monotonic() >= tell_at:
                context.emit("progress", done=0, of=1, unit="preparation by another process")
                tell_at = time.monotonic() + _TELL_S
    try:
        yield
    finally:
        lock.release()


def _other(dataset: Dataset, different: str) -> InvalidData:
    advice = "ask for that, take another dataset name, or delete the folder"
    return InvalidData(f"dataset {dataset.name!r} in {dataset.directory} {different}; {advice}")


def _refuse_to_overwrite(dataset: Dataset) -> None:
    """Files that were not made here are not ours to replace, nor to be taken for what is asked."""
    if dataset.manifest() is not None:
        return
    files = [dataset.directory / MANIFEST, *(file for split in SPLITS for file in token_files(dataset.split(split)))]
    if present := [file for file in files if file.exists()]:
        raise InvalidData(f"{present[0]} is not of this dataset and would be overwritten; choose another folder")


def _context(
    emit: Emit | None, stop: ShutdownSignal | None, threads: int | None = None, commit_every_s: float = COMMIT_EVERY_S
) -> PrepareContext:
    return PrepareContext(emit or _silent, stop or ShutdownSignal(), threads, commit_every_s)


def _command(dataset: Dataset, tokenizer: TokenizerChoice, layout: Layout) -> str:
    source = dataset.name if dataset.name in {*BUILTIN_SOURCES, *HUB_DATASETS} else "file:PATH"
    where = f"--data-root {layout.datasets.parent}" if layout.datasets else f"--out {dataset.directory}"
    made_with = "" if tokenizer == "gpt2" else f" --tokenizer {tokenizer_name(tokenizer)}"
    return f"python -m model_core.data.prepare --source {source} --name {dataset.name} {where}{made_with}"


def _silent(event: str, **fields: Any) -> None:
    pass
