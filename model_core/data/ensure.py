"""Opens a dataset, and prepares it first if it is missing.

An existing dataset is compared with the requested one. A file lock ensures that processes which need the same dataset
prepare it only once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model_core.catalog import BUILTIN_SOURCES, HUB_DATASETS
from model_core.config import DataConfig, ExperimentConfig
from model_core.config_loader import ConfigWarning
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
from model_core.data.sources.base import DocumentsBy, OnBadDocument, SpecialText
from model_core.data.sources.hub_access import Token
from model_core.entrypoint import ShutdownSignal
from model_core.errors import DatasetNotReady, InvalidData
from model_core.storage.data_identity import record_hashes
from model_core.storage.dataset import LOCK, MANIFEST, SPLITS, Dataset, dataset_of, token_files
from model_core.storage.files import Layout, checked_name
from model_core.tokenizer import END_OF_TEXT

_POLL_S, _REPORT_EVERY_S = 0.5, 10.0


def ensure_dataset(
    config: ExperimentConfig, layout: Layout, *, token: Token | None = None, emit: Emit | None = None,
    stop: ShutdownSignal | None = None,
) -> Dataset:  # fmt: skip
    """Open the dataset of a configuration, and prepare it first if it is missing.

    Args:
        config: Configuration; its section `data` describes the dataset.
        layout: Directories of the data root.
        token: See `prepare`.
        emit: See `prepare`.
        stop: See `prepare`.

    Returns:
        The complete dataset.

    Raises:
        Stopped: A stop was requested; completed work is kept.
        DatasetNotReady: The dataset is missing and the configuration names no source; the message contains the
            command that prepares it.
        InvalidData: The source cannot be read, or the existing dataset differs from the spec or is damaged.
    """
    dataset, data = dataset_of(config, layout), config.data
    missing = dataset.missing()
    if missing and data.source is not None:
        return prepare_dataset(DatasetSpec.of(data), dataset, _context(emit, stop), token=token)
    if missing:
        raise DatasetNotReady(f"there is no {missing[0]}; make it with: {_command(dataset, data.tokenizer, layout)}")
    check_matches(dataset, data)
    dataset.check_sizes()
    return dataset


def check_matches(dataset: Dataset, data: DataConfig, *, read_files: bool = True) -> None:
    """Check that an existing dataset is the one that a training requests.

    Args:
        dataset: Complete dataset.
        data: Section `data` of the training.
        read_files: See `training_mismatch`.

    Raises:
        InvalidData: The dataset differs, or its manifest cannot be read.
    """
    if (difference := training_mismatch(dataset.manifest(), data, read_files=read_files)) is not None:
        raise _mismatch_error(dataset, difference)


def prepare(
    source: str, directory: Path, *, name: str, tokenizer: TokenizerChoice = "gpt2", split: Shares = DEFAULT_SPLIT,
    revision: str | None = None, text_column: str = "text", seed: int = DEFAULT_SEED, dedupe: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES, documents: DocumentsBy = "auto", special_text: SpecialText = "keep",
    on_bad_document: OnBadDocument = "skip", token: Token | None = None, emit: Emit | None = None,
    stop: ShutdownSignal | None = None, threads: int | None = None, commit_every_s: float = COMMIT_EVERY_S,
) -> Dataset:  # fmt: skip
    """Prepare a dataset. An existing one that was made in the same way is verified and kept.

    Args:
        source: Source of the documents, such as ``stories`` or ``file:PATH``; see `open_source`.
        directory: Directory of the dataset's files.
        name: Name of the dataset and prefix of its files.
        tokenizer: ``gpt2``, or a BPE to train on the training split.
        split: Shares of training, validation and test documents.
        revision: Revision of the source, for sources that have revisions.
        text_column: Column with the text, for sources with columns.
        seed: Seed of the split, and of generated text.
        dedupe: Drop documents that repeat an earlier text.
        shard_bytes: Maximum size of the token ids in one file.
        documents: What separates the documents of a text file.
        special_text: What happens to the text ``<|endoftext|>`` inside a document.
        on_bad_document: Whether a document that cannot be read ends the preparation.
        token: Access token for sources with restricted access.
        emit: Receives the events ``progress``, ``resumed``, ``warning`` and ``prepared``.
        stop: Checked between chunks of documents.
        threads: Number of tokenizing threads; None for one more than the number of cores. The files do not depend
            on it.
        commit_every_s: Seconds between commits, and so the work that a crash can lose.

    Returns:
        The complete dataset.

    Raises:
        Stopped: A stop was requested; the same call continues from there.
        DiskFull: The disk is full; the same call continues from there.
        InvalidConfig: The source does not exist.
        InvalidData: The source cannot be read, or the existing dataset differs from the spec or is damaged.
    """
    dataset = Dataset.named(checked_name("dataset", name), directory)
    spec = DatasetSpec(
        name, source, tokenizer, split, revision, text_column, seed, dedupe, shard_bytes, documents, special_text,
        on_bad_document,
    )  # fmt: skip
    return prepare_dataset(spec, dataset, _context(emit, stop, threads, commit_every_s), token=token)


def prepare_dataset(
    spec: DatasetSpec, dataset: Dataset, context: PrepareContext, *, token: Token | None = None
) -> Dataset:
    """Prepare the dataset of a spec; see `prepare`.

    Args:
        spec: Source and options of the dataset.
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
        for difference in spec.differences(manifest):
            raise _mismatch_error(dataset, difference)
    if not tokenized:
        dataset.verify()
    splits = (manifest or {"splits": {}})["splits"].values()
    totals = {key: sum(counts[key] for counts in splits) for key in ("documents", "tokens")}
    reading = (manifest or {}).get("reading")
    for warning in _reading_warnings(spec, reading or {}):
        context.emit("warning", code=warning.code, detail=warning.detail)
    context.emit("prepared", dataset=dataset.name, **totals, tokenized=tokenized, reading=reading)
    return dataset


def _make_missing(spec: DatasetSpec, dataset: Dataset, context: PrepareContext, token: Token | None) -> int:
    """Make the files, unless another process does so first; return the number of documents tokenized here."""
    source = spec.open_source(token, _report_survey(context))
    for warning in source.warnings:
        context.emit("warning", code=warning.code, detail=warning.detail)
    dataset.directory.mkdir(parents=True, exist_ok=True)
    with _locked(dataset.directory, context):
        if not dataset.missing():
            return 0
        _refuse_to_overwrite(dataset)
        tokenized = make_files(spec, source, dataset, context)
        record_hashes(dataset)
        return tokenized


@contextmanager
def _locked(directory: Path, context: PrepareContext) -> Iterator[None]:
    """Lock the directory, and report while waiting; the kernel releases the lock of a killed process."""
    lock, report_at = FileLock(directory / LOCK), time.monotonic() + _POLL_S
    while not lock.is_locked:
        context.stop.check()
        try:
            lock.acquire(timeout=_POLL_S)
        except Timeout:
            if time.monotonic() >= report_at:
                context.emit("progress", done=0, of=1, unit="preparation by another process")
                report_at = time.monotonic() + _REPORT_EVERY_S
    try:
        yield
    finally:
        lock.release()


def _report_survey(context: PrepareContext) -> Callable[[int], None]:
    """Report how many documents were looked through, at most once per second, and hear a stop."""
    done, report_at = 0, time.monotonic() + 1

    def report(count: int) -> None:
        nonlocal done, report_at
        context.stop.check()
        done += count
        if time.monotonic() >= report_at:
            context.emit("progress", done=done, of=None, unit="documents looked through", eta_s=None)
            report_at = time.monotonic() + 1

    return report


def _reading_warnings(spec: DatasetSpec, reading: Mapping[str, Any]) -> Iterator[ConfigWarning]:
    """Warnings about what was found in the documents."""
    markers, zero_bytes = reading.get("special_texts", 0), reading.get("zero_bytes", 0)
    bad = reading.get("bad_documents") or {"count": 0}
    if markers and spec.special_text == "keep":
        advice = "data.special_text: strip removes it, and split divides documents there"
        yield ConfigWarning("special_text", f"{END_OF_TEXT} is inside documents {markers:,} times, as text; {advice}")
    if zero_bytes:
        yield ConfigWarning("zero_bytes", f"zero bytes in documents, replaced by U+FFFD: {zero_bytes:,}")
    if bad["count"]:
        named = "; ".join(bad["first"])
        yield ConfigWarning(
            "bad_documents", f"documents that cannot be read and were skipped: {bad['count']:,} ({named})"
        )


def _mismatch_error(dataset: Dataset, difference: str) -> InvalidData:
    hint = "request it as it is, choose another dataset name, or delete the folder"
    return InvalidData(f"dataset {dataset.name!r} in {dataset.directory} {difference}; {hint}")


def _refuse_to_overwrite(dataset: Dataset) -> None:
    """Refuse files without a manifest: another program wrote them, and they may hold other data."""
    if dataset.manifest() is not None:
        return
    files = [dataset.directory / MANIFEST, *(file for split in SPLITS for file in token_files(dataset.split(split)))]
    if existing := [file for file in files if file.exists()]:
        raise InvalidData(f"{existing[0]} is not of this dataset and would be overwritten; choose another folder")


def _context(
    emit: Emit | None, stop: ShutdownSignal | None, threads: int | None = None, commit_every_s: float = COMMIT_EVERY_S
) -> PrepareContext:
    return PrepareContext(emit or _silent, stop or ShutdownSignal(), threads, commit_every_s)


def _command(dataset: Dataset, tokenizer: TokenizerChoice, layout: Layout) -> str:
    source = dataset.name if dataset.name in {*BUILTIN_SOURCES, *HUB_DATASETS} else "file:PATH"
    target = f"--data-root {layout.datasets.parent}" if layout.datasets else f"--out {dataset.directory}"
    option = "" if tokenizer == "gpt2" else f" --tokenizer {tokenizer_name(tokenizer)}"
    return f"python -m model_core.data.prepare --source {source} --name {dataset.name} {target}{option}"


def _silent(event: str, **fields: Any) -> None:
    pass
